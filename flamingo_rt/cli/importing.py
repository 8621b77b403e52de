"""``flamingo-rt import``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from flamingo_rt.cli.dependencies import needs_extra
from flamingo_rt.cli.interrupts import saying_what_was_written
from flamingo_rt.cli.openflamingo_options import open_sources, source_options
from flamingo_rt.cli.paths import READ, WRITTEN
from flamingo_rt.cli.progress_bar import ProgressBar
from flamingo_rt.printable import printable


@click.group()
def command() -> None:
    """Make a checkpoint from another project's files.

    \b
    Example:
      flamingo-rt import openflamingo --checkpoint checkpoint.pt --vision ViT-L-14.pt \\
          --language mpt-1b-redpajama-200b-dolly --out openflamingo-3b
    """


@command.command()
@click.option("--checkpoint", required=True, type=READ, metavar="FILE", help="OpenFlamingo's checkpoint.pt.")
@source_options(required=True)
@click.option("--out", required=True, type=WRITTEN, metavar="FOLDER", help="The checkpoint to write.")
@click.option("--dtype", default="fp32", show_default=True, type=click.Choice(["fp32", "fp16", "bf16"]),
              help="Type of the matrices; norms, biases and gates stay fp32.")
@click.option("--overwrite", is_flag=True, help="Replace --out when it exists.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: checkpoint, name, parameters, bytes.")
def openflamingo(checkpoint: Path, out: Path, dtype: str, overwrite: bool, as_json: bool, **sources: Any) -> None:
    """Import an OpenFlamingo model from local files: its checkpoint.pt, CLIP's weights and the language model.

    Language models: MPT, GPT-NeoX, LLaMA, OPT. No network is used, and no file is run: .pt files are read as data.

    \b
    Example:
      flamingo-rt import openflamingo --checkpoint checkpoint.pt --vision ViT-L-14.pt \\
          --language mpt-1b-redpajama-200b-dolly --out openflamingo-3b
    """
    with needs_extra("export"):
        from flamingo_rt.checkpoints import DTYPES, write_checkpoint
        from flamingo_rt.files import check_output
    read = (checkpoint, sources["vision"], sources["language"], sources["tokenizer"])
    check_output(out, overwrite, [path for path in read if path is not None])
    stored = open_sources(checkpoint, **sources).stored_as(DTYPES[dtype])
    size = sum(tensor.nbytes for tensor in stored.tensors.values())
    with saying_what_was_written(out), ProgressBar()("weights", size) as advance:
        write_checkpoint(out, stored, overwrite, lambda name, count: advance(count))
    numbers = sum(tensor.nbytes // tensor.dtype.itemsize for tensor in stored.tensors.values())
    if as_json:
        click.echo(json.dumps({
            "checkpoint": str(out), "name": stored.config.name, "parameters": numbers, "bytes": size, "dtype": dtype,
        }))
        return
    vision = stored.config.vision
    activation = vision.activation if vision.kind == "vit" else "GELU"
    click.echo(
        f"wrote {printable(str(out))}: {printable(stored.config.name)}, {numbers / 1e6:.1f}M parameters, "
        f"{size / 1e6:.1f} MB ({dtype}); vision encoder with {activation}"
    )
