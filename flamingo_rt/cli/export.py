"""``flamingo-rt export``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flamingo_rt.cli.dependencies import needs_extra
from flamingo_rt.cli.interrupts import saying_what_was_written
from flamingo_rt.cli.numbers import Number
from flamingo_rt.cli.openflamingo_options import SOURCES, open_sources, source_options
from flamingo_rt.cli.paths import PATH_TEXT, READ, WRITTEN
from flamingo_rt.cli.progress_bar import ProgressBar
from flamingo_rt.cli.quantize_options import SCENES, check_options, cost_lines, quantize_of, quantize_options
from flamingo_rt.errors import UsageError
from flamingo_rt.printable import printable

if TYPE_CHECKING:
    from flamingo_rt.bundle import Bundle
    from flamingo_rt.checkpoints import StoredModel
    from flamingo_rt.config import FlamingoConfig
    from flamingo_rt.export.checks.validation import ValidationPrompts



@click.command()
@click.option("--ckpt", required=True, type=READ, metavar="FOLDER|FILE",
              help="A checkpoint folder; or OpenFlamingo's checkpoint.pt, with --vision and --language.")
@click.option("--out", required=True, type=WRITTEN, metavar="FOLDER", help="The bundle to write.")
@source_options(required=False)
@click.option("--lowering", default="ort", show_default=True,
              help="Form of the graphs: ort (ONNX Runtime), tensorrt (10.15 and later, RTX), tensorrt-classic (8.6 to "
                   "10.14).")
@click.option("--compute", default="fp32", show_default=True, type=click.Choice(["fp32", "fp16", "bf16"]),
              help="Type the graphs compute in: fp16 and bf16 are for GPUs.")
@click.option("--dtype", type=click.Choice(["fp32", "fp16", "bf16"]),
              help="Type the matrices are stored in. Default: what --compute says.")
@quantize_options
@click.option("--validation", type=PATH_TEXT, metavar="FILE|scenes",
              help="Measure how likely the model's captions of its own kind of pictures are, and record it: infer then "
                   "hints at a picture of another kind. FILE: prompts as --calibration takes them. scenes: drawn "
                   "ones, for a model of flamingo-rt train.")
@click.option("--tolerance", type=Number(0, 1e9, min_open=True),
              help="Largest deviation from PyTorch that is accepted, without --quantize. Default: 0.0001; with "
                   "--compute fp16 or bf16, twice that type's precision (epsilon).")
@click.option("--license", "license_", metavar="TEXT",
              help="License of the weights, such as apache-2.0, to be kept in the bundle.")
@click.option("--source", metavar="TEXT",
              help="Origin of the weights, such as an address, to be kept in the bundle.")
@click.option("--overwrite", is_flag=True, help="Replace --out when it exists.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: bundle, bytes, deviation and more.")
def command(
    ckpt: Path, out: Path, lowering: str, compute: str, dtype: str | None, validation: str | None,
    tolerance: float | None, license_: str | None, source: str | None, overwrite: bool, as_json: bool, **options: Any,
) -> None:
    """Write a deployable bundle from a checkpoint: three ONNX graphs, tokenizer and manifest.

    Every graph is compared with the PyTorch model on eight kinds of prompts; a bundle that deviates is not written. A
    quantized one is compared on prompts it was not rounded for, and not written if it costs more than is allowed. Some
    of the graphs' outputs are kept in the bundle: flamingo-rt verify compares those of another machine with them.

    \b
    Examples:
      flamingo-rt export --ckpt models/tiny --out bundle
      flamingo-rt export --ckpt models/tiny --validation scenes --out bundle
      flamingo-rt export --ckpt models/tiny --quantize int4 --calibration scenes --out bundle-int4
      flamingo-rt export --ckpt models/tiny --compute fp16 --out bundle-gpu
      flamingo-rt export --ckpt checkpoint.pt --vision ViT-L-14.pt --language mpt-1b-redpajama-200b --out bundle
    """
    with needs_extra("export"):
        from flamingo_rt.export.pipeline import export_model
        from flamingo_rt.files import check_output
    check_output(out, overwrite)
    check_options(options)
    if tolerance is not None and options["quantize"]:
        raise UsageError("--tolerance goes without --quantize, whose limits are --min-cosine and --max-changed")
    model, paths = _open(ckpt, {name: options[name] for name in SOURCES})
    # PyTorch imports the libraries of the exporter when it exports.
    with saying_what_was_written(out), needs_extra("export"):
        bundle = export_model(
            model, out, sources=paths, lowering=lowering, compute=compute, dtype=dtype, overwrite=overwrite,
            tolerance=tolerance, quantize=quantize_of(options, model.config),
            validation=_validation(validation, model.config), license=license_, source=source, progress=ProgressBar(),
        )
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    if not as_json:
        _report(bundle, size, compute)
    else:
        click.echo(json.dumps({
            "bundle": str(out), "bytes": size, "lowering": lowering, "compute": compute, "dtype": dtype or compute,
            "deviation": bundle.parity, "quantization": bundle.quantization, "rounding": bundle.rounding,
            "validation": bundle.validation and asdict(bundle.validation),
            "license": bundle.license, "source": bundle.source,
        }))


def _report(bundle: Bundle, size: int, compute: str) -> None:
    """Print what was written and what was measured of it."""
    shown = printable(str(bundle.path))
    if bundle.quantization is not None:
        rounding = {"gptq": "by gptq", "nearest": "to the nearest"}[bundle.quantization["rounding"]]
        click.echo(f"wrote {shown} ({size / 1e6:.1f} MB), {bundle.quantization['scheme']}, rounded {rounding}")
        for line in cost_lines(bundle.quantization):
            click.echo(printable(line))
    else:
        upcast = "" if compute == "fp32" else ", both computing in fp32"
        deviation = f"largest deviation from PyTorch{upcast}: {_listed(bundle.parity)}"
        click.echo(f"wrote {shown} ({size / 1e6:.1f} MB); {deviation}")
    if bundle.rounding is not None:
        unquantized = "" if bundle.quantization is None else " without quantization"
        click.echo(
            f"largest deviation that computing in {compute}{unquantized} makes in PyTorch: {_listed(bundle.rounding)}"
        )
    _echo_validation(bundle)


def _open(ckpt: Path, sources: dict[str, Any]) -> tuple[StoredModel, tuple[Path, ...]]:
    """Open the checkpoint, or an OpenFlamingo model's three sources; with the paths that are read."""
    from flamingo_rt.bundle import is_bundle
    from flamingo_rt.checkpoints import open_checkpoint

    if sources["vision"] is None and sources["language"] is None:
        given = [name for name, value in sources.items() if value]
        if given:
            option = f"--{given[0].replace('_', '-')}"
            raise UsageError(f"{option} goes with --vision and --language, for OpenFlamingo's checkpoint.pt")
        if is_bundle(ckpt):
            made = f"exported{_quantized(ckpt)} already"
            raise UsageError(f"{ckpt} is a bundle, {made}: give the checkpoint it was made from")
        if ckpt.is_file():
            raise UsageError(f"{ckpt} is a file: OpenFlamingo's checkpoint.pt needs --vision and --language beside it")
        return open_checkpoint(ckpt), (ckpt,)
    if sources["vision"] is None or sources["language"] is None:
        raise UsageError("an OpenFlamingo model has three sources: give --ckpt, --vision and --language")
    read = (ckpt, sources["vision"], sources["language"], sources["tokenizer"])
    return open_sources(ckpt, **sources), tuple(path for path in read if path is not None)


def _validation(option: str | None, config: FlamingoConfig) -> ValidationPrompts | None:
    """Read the pictures that ``--validation`` asks for."""
    from flamingo_rt.export.checks.validation import file_captions, scene_captions

    if option is None:
        return None
    return scene_captions(config) if option == SCENES else file_captions(config, Path(option))


def _echo_validation(bundle: Bundle) -> None:
    from flamingo_rt.bundle import QUANTILE

    if bundle.validation is not None:
        of = bundle.validation
        most = f"{1 - QUANTILE:.0%} have a probability of at least {of.probability:.3g}"
        click.echo(f"of {of.captions} captions {printable(of.origin)}, {most}")


def _listed(deviations: Mapping[str, float]) -> str:
    return ", ".join(f"{graph} {value:.1e}" for graph, value in deviations.items())


def _quantized(bundle: Path) -> str:
    """Words about a bundle's quantization; none about a damaged one."""
    from flamingo_rt.bundle import read_description
    from flamingo_rt.contract import LANGUAGE_MODEL
    from flamingo_rt.errors import DataError

    try:
        scheme = read_description(bundle).graphs[LANGUAGE_MODEL].quantization
    except DataError:
        return ""
    return f" and quantized ({scheme})" if scheme else ""
