"""``flamingo-rt bridge``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from flamingo_rt.cli.dependencies import needs_extra
from flamingo_rt.cli.interrupts import saying_what_was_written
from flamingo_rt.cli.paths import READ, WRITTEN
from flamingo_rt.cli.progress_bar import ProgressBar
from flamingo_rt.errors import UsageError
from flamingo_rt.printable import printable


@click.group()
def command() -> None:
    """Take the trained bridge out of a checkpoint, and join it with its frozen parts.

    A bridge is small: it has none of the weights that were frozen. Whoever has the same vision encoder and language
    model makes the whole checkpoint of it.

    \b
    Example:
      flamingo-rt bridge take --ckpt runs/mine --out my-bridge
      flamingo-rt bridge join --bridge my-bridge --vision encoder --language runs/language --out joined
    """


@command.command()
@click.option("--ckpt", required=True, type=READ, metavar="FOLDER", help="A checkpoint that train flamingo wrote.")
@click.option("--out", required=True, type=WRITTEN, metavar="FOLDER", help="The bridge to write.")
@click.option("--dtype", default="fp16", show_default=True, type=click.Choice(["fp32", "fp16", "bf16"]),
              help="Type of the matrices; norms and gates stay fp32.")
@click.option("--vision", type=READ, metavar="FILE|FOLDER", help="The encoder that it was trained on, to compare.")
@click.option("--language", type=READ, metavar="FILE|FOLDER",
              help="The language model that it was trained on, to compare.")
@click.option("--tokenizer", type=READ, metavar="FILE|FOLDER",
              help="tokenizer.json, or its folder, when it is not in --language.")
@click.option("--overwrite", is_flag=True, help="Replace --out when it exists.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: bridge, bytes, dtype.")
def take(
    ckpt: Path, out: Path, dtype: str, vision: Path | None, language: Path | None, tokenizer: Path | None,
    overwrite: bool, as_json: bool,
) -> None:
    """Write the bridge of a checkpoint: resampler, gated cross-attention, and the new tokens' rows.

    The bridge of a run with unfreeze or lora cannot be joined, since the parts it was trained on are no more. With
    --vision and --language they are compared with those that the checkpoint holds.

    \b
    Example:
      flamingo-rt bridge take --ckpt runs/mine --out my-bridge
    """
    if tokenizer is not None and language is None:
        raise UsageError("--tokenizer goes with --language: give both, or leave it out")
    with needs_extra("train"):
        from flamingo_rt.checkpoints import DTYPES
        from flamingo_rt.training.bridge_folder import take_bridge

        with saying_what_was_written(out):
            size = take_bridge(ckpt, out, DTYPES[dtype], overwrite, vision=vision, language=language,
                               tokenizer=tokenizer)
    if as_json:
        click.echo(json.dumps({"bridge": str(out), "bytes": size, "dtype": dtype}))
        return
    click.echo(f"wrote {printable(str(out))}: {size / 1e6:.1f} MB ({dtype})")


@command.command()
@click.option("--bridge", required=True, type=READ, metavar="FOLDER", help="A bridge that bridge take wrote.")
@click.option("--vision", required=True, type=READ, metavar="FILE|FOLDER",
              help="Its vision encoder: a folder of import encoder or train vision, a checkpoint, or CLIP's weights.")
@click.option("--language", required=True, type=READ, metavar="FILE|FOLDER",
              help="Its language model: a folder of train language, a checkpoint, or a model's folder.")
@click.option("--tokenizer", type=READ, metavar="FILE|FOLDER",
              help="tokenizer.json, or its folder, when it is not in --language.")
@click.option("--out", required=True, type=WRITTEN, metavar="FOLDER", help="The checkpoint to write.")
@click.option("--overwrite", is_flag=True, help="Replace --out when it exists.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: checkpoint, name, parameters, bytes.")
def join(
    bridge: Path, vision: Path, language: Path, tokenizer: Path | None, out: Path, overwrite: bool, as_json: bool
) -> None:
    """Join a bridge with the encoder and the language model that it was trained on: a whole checkpoint.

    \b
    Example:
      flamingo-rt bridge join --bridge my-bridge --vision encoder --language runs/language --out joined
    """
    with needs_extra("train"):
        from flamingo_rt.checkpoints import write_checkpoint
        from flamingo_rt.files import check_output
        from flamingo_rt.parameter_count import reckon_parameters
        from flamingo_rt.training.bridge_folder import join_bridge

        check_output(out, overwrite, [path for path in (bridge, vision, language, tokenizer) if path is not None])
        joined = join_bridge(bridge, vision, language, tokenizer)  # a .gguf needs a library of its own
        size = sum(tensor.nbytes for tensor in joined.tensors.values())
        with saying_what_was_written(out), ProgressBar()("weights", size) as advance:
            write_checkpoint(out, joined, overwrite, lambda name, count: advance(count))
    numbers = reckon_parameters(joined.config)["total"]
    if as_json:
        click.echo(json.dumps({
            "checkpoint": str(out), "name": joined.config.name, "parameters": numbers, "bytes": size,
        }))
        return
    click.echo(f"wrote {printable(str(out))}: {numbers / 1e6:.1f}M parameters, {size / 1e6:.1f} MB")
