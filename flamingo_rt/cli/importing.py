"""``flamingo-rt import``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import click

from flamingo_rt.cli.dependencies import needs_extra
from flamingo_rt.cli.interrupts import saying_what_was_written
from flamingo_rt.cli.numbers import Features, Triple, count
from flamingo_rt.cli.openflamingo_options import open_sources, source_options
from flamingo_rt.cli.paths import READ, WRITTEN
from flamingo_rt.cli.progress_bar import ProgressBar
from flamingo_rt.config import LARGEST, Interpolation
from flamingo_rt.printable import printable


@click.group()
def command() -> None:
    """Make a checkpoint, or a part of one, from another project's files.

    \b
    Example:
      flamingo-rt import openflamingo --checkpoint checkpoint.pt --vision ViT-L-14.pt \\
          --language mpt-1b-redpajama-200b-dolly --out openflamingo-3b
    """


@command.command()
@click.option("--onnx", required=True, type=READ, metavar="FILE", help="The encoder's graph; its weights inside, or in "
              "files beside it.")
@click.option("--image-size", required=True, type=count(most=LARGEST["image_size"]), metavar="PIXELS",
              help="Side of the pictures that it takes.")
@click.option("--output", metavar="NAME", help="The output to take, where the graph has several.")
@click.option("--features", type=Features(), metavar="SxD", help="Features that it is expected to give, such as "
              "81x1280: S of a picture, D wide.")
@click.option("--resize", default="crop", show_default=True, type=click.Choice(["crop", "pad", "squash"]),
              help="Way to a square: the centre of the picture, bars beside it, or another aspect.")
@click.option("--interpolation", default="bicubic", show_default=True, type=click.Choice(get_args(Interpolation)),
              help="Filter of the resizing.")
@click.option("--mean", default="0.5,0.5,0.5", show_default=True, type=Triple(), metavar="R,G,B",
              help="Subtracted from pixels in 0 to 1.")
@click.option("--std", default="0.5,0.5,0.5", show_default=True, type=Triple(above_zero=True), metavar="R,G,B",
              help="The difference is divided by it.")
@click.option("--out", required=True, type=WRITTEN, metavar="FOLDER", help="The folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace --out when it exists.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: encoder, features, width, parameters, digest.")
def encoder(
    onnx: Path, image_size: int, output: str | None, features: tuple[int, int] | None, resize: Any, interpolation: Any,
    mean: tuple[float, float, float], std: tuple[float, float, float], out: Path, overwrite: bool, as_json: bool,
) -> None:
    """Import any vision encoder from an ONNX file, for train flamingo --vision.

    It stays frozen, and is exported as it is. Its features are [N, S, D], or a grid [N, C, h, w], or one vector [N, D].

    \b
    Example:
      flamingo-rt import encoder --onnx encoder.onnx --image-size 260 --features 81x1280 --out encoder
    """
    with needs_extra("export"):
        from flamingo_rt.config import PreprocessingConfig
        from flamingo_rt.importing.external_encoder import import_encoder
    preprocessing = PreprocessingConfig(resize, interpolation, mean, std)
    with saying_what_was_written(out):
        found = import_encoder(onnx, out, image_size, preprocessing, features=features, output=output,
                               overwrite=overwrite)
    if as_json:
        click.echo(json.dumps({
            "encoder": str(out), "features": found.features, "width": found.width, "parameters": found.parameters,
            "digest": found.digest,
        }))
        return
    click.echo(f"wrote {printable(str(out))}: {found.features} features of width {found.width} for a picture of "
               f"{image_size} pixels, {found.parameters / 1e6:.1f}M parameters")


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
