"""``flamingo-rt export``."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from flamingo_rt.cli.dependencies import needs_extra


@click.command()
@click.option("--ckpt", required=True, type=click.Path(path_type=Path), metavar="FOLDER", help="The checkpoint.")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FOLDER", help="The bundle to write.")
@click.option("--lowering", default="ort", show_default=True, help="Form of the graphs: ort (ONNX Runtime).")
@click.option("--tolerance", default=1e-4, show_default=True, help="Largest deviation from PyTorch that is accepted.")
@click.option("--overwrite", is_flag=True, help="Replace --out when it exists.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: bundle, bytes, deviation per graph.")
def command(ckpt: Path, out: Path, lowering: str, tolerance: float, overwrite: bool, as_json: bool) -> None:
    """Write a deployable bundle from a checkpoint: three ONNX graphs, tokenizer and manifest.

    Every graph is compared with the PyTorch model on eight kinds of prompts; a bundle that deviates is not written.

    \b
    Example:
      flamingo-rt export --ckpt models/tiny --out bundle
    """
    with needs_extra("export"):
        from flamingo_rt.export.pipeline import export_checkpoint
    start = time.perf_counter()

    def on_stage(stage: str) -> None:
        click.echo(f"{time.perf_counter() - start:6.1f} s  {stage}", err=True)

    with needs_extra("export"):  # PyTorch imports the exporter's libraries when it exports
        bundle = export_checkpoint(
            ckpt, out, lowering=lowering, tolerance=tolerance, overwrite=overwrite, on_stage=on_stage
        )
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    if as_json:
        click.echo(json.dumps({"bundle": str(out), "bytes": size, "lowering": lowering, "deviation": bundle.parity}))
        return
    deviations = ", ".join(f"{graph} {value:.1e}" for graph, value in bundle.parity.items())
    click.echo(f"wrote {out} ({size / 1e6:.1f} MB); largest deviation from PyTorch: {deviations}")
