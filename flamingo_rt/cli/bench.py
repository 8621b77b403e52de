"""``flamingo-rt bench``."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flamingo_rt.cli.backend_option import backend_option, threads_option, trust_options
from flamingo_rt.cli.dependencies import needs_extra
from flamingo_rt.cli.interrupts import on_interrupt
from flamingo_rt.cli.numbers import Counts
from flamingo_rt.cli.paths import READ, WRITTEN
from flamingo_rt.cli.progress_bar import ProgressBar
from flamingo_rt.errors import DataError, DependencyError, UsageError
from flamingo_rt.export.quantization.quantization_options import SCHEMES_OF
from flamingo_rt.printable import printable

if TYPE_CHECKING:
    from flamingo_rt.bench.random_bundle import RandomBundle
    from flamingo_rt.bench.results import Report
    from flamingo_rt.runtime.model import Model

PLOTS = (".svg", ".html")
PLAIN_WIDTH = 120  # characters of a table's line where there is no terminal


@click.command()
@click.option("--model", "path", type=READ, metavar="FOLDER",
              help="A bundle, or a checkpoint. Default: the model in the package.")
@click.option("--preset", "preset_name", metavar="NAME",
              help="Random weights of this model's shape instead, such as openflamingo-3b; needs the extra export.")
@click.option("--dtype", type=click.Choice(["fp32", "fp16", "bf16"]), help="With --preset: type of the matrices.")
@click.option("--compute", type=click.Choice(["fp32", "fp16", "bf16"]),
              help="With --preset: type the graphs compute in; fp16 and bf16 are for GPUs.")
@click.option("--quantize", type=click.Choice(SCHEMES_OF["ort"]), help="With --preset: quantize the weights.")
@click.option("--work", type=WRITTEN, metavar="FOLDER",
              help="With --preset: where its bundle is kept.  [default: the user's cache]")
@backend_option
@trust_options
@threads_option
@click.option("--spin/--no-spin", default=True, show_default=True,
              help="Let threads that wait for the next operator spin; without, other work gets the cores.")
@click.option("--shots", type=Counts(), metavar="A,B,C",
              help="Examples before the query.  [default: those of 0,4,8,16,32 that fit]")
@click.option("--batch", type=Counts(), default="1,2,4", show_default=True, metavar="A,B,C",
              help="Rows that decode together.")
@click.option("--context", type=Counts(), metavar="A,B,C",
              help="Tokens in the cache while decoding.  [default: 64 and 1500, or as many as fit]")
@click.option("--tokens", default=32, show_default=True, help="Decode steps of a run.")
@click.option("--runs", default=5, show_default=True, help="Runs of each measurement.")
@click.option("--warmup", default=1, show_default=True, help="Runs before those, which do not count.")
@click.option("--seconds", default=60.0, show_default=True, help="Begin no further run of a measurement after this.")
@click.option("--json", "as_json", is_flag=True, help="The last line is one JSON object with everything.")
@click.option("--plot", type=WRITTEN, metavar="FILE", help="Draw charts: .svg, or .html with tables too.")
@click.option("--overwrite", is_flag=True, help="Replace --plot when it exists.")
def command(
    path: Path | None, preset_name: str | None, dtype: str | None, quantize: str | None, work: Path | None,
    compute: str | None, backend: str, trust_engines: bool, allow_host_code: bool, threads: int | None, spin: bool,
    as_json: bool, plot: Path | None, overwrite: bool, **wanted: Any,
) -> None:
    """Measure a model here: each stage, decoding, shots, and how near they come to what this machine can do.

    Medians after a warm-up; memory bandwidth and the rate of matrix products are measured in between. Nothing else
    should be running.

    \b
    Examples:
      flamingo-rt bench
      flamingo-rt bench --model bundle --shots 0,32 --plot bench.html
      flamingo-rt bench --preset openflamingo-3b --runs 3 --json
    """
    from flamingo_rt.loading import BACKENDS, PACKAGED_BUNDLE

    if backend not in BACKENDS:
        raise UsageError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    bundle = _random_bundle(path, preset_name, dtype, quantize, work, compute, backend)
    if plot is not None:
        _check_plot(plot, overwrite)
    from flamingo_rt.bench import BenchOptions, measure

    options, progress = BenchOptions(threads=threads, spin=spin, **wanted), ProgressBar()
    trust = {"trust_engines": trust_engines, "allow_host_code": allow_host_code}
    with on_interrupt(lambda: "nothing was printed" + ("" if plot is None else f", {plot} was not drawn")):
        if bundle is not None:
            path = _made(bundle, progress)
        model = _loaded(path, bundle, backend, threads, spin, trust)
        report = measure(model, options, folder=path or PACKAGED_BUNDLE, progress=progress)
    if as_json:
        click.echo(json.dumps(report.to_dict()))
    else:
        _print(report)
    if plot is not None:  # after the figures are printed, in case drawing fails
        from flamingo_rt.bench.page import write_plot

        write_plot(report, plot)
        click.echo(f"wrote {printable(str(plot))}", err=True)


def _made(bundle: RandomBundle, progress: ProgressBar) -> Path:
    """The folder of the bundle, made first unless it exists."""
    if not bundle.ready():
        with needs_extra("export"):
            bundle.make(lambda text: click.echo(printable(text, lines=True), err=True), progress)
    return bundle.path


def _loaded(
    path: Path | None, bundle: RandomBundle | None, backend: str, threads: int | None, spin: bool,
    trust: dict[str, Any],
) -> Model:
    """Load the model, and count the process's peak memory from here; ``bundle`` is set for a random model."""
    from flamingo_rt.bench.machine import reset_peak
    from flamingo_rt.loading import load

    reset_peak()  # making a bundle is not part of running it
    try:
        return load(path, backend, threads, spin=spin, **trust)
    except DataError as error:
        if bundle is None:
            raise
        raise DataError(f"{error}; or remove {bundle.path} to have it made again") from error


def _print(report: Report) -> None:
    from rich.console import Console

    from flamingo_rt.bench.report import print_report

    console = Console()
    print_report(report, console if console.is_terminal else Console(width=PLAIN_WIDTH))


def _random_bundle(
    path: Path | None, name: str | None, dtype: str | None, quantize: str | None, work: Path | None,
    compute: str | None, backend: str,
) -> RandomBundle | None:
    given = {"--dtype": dtype, "--quantize": quantize, "--work": work, "--compute": compute}
    if name is None:
        for option, value in given.items():
            if value is not None:
                raise UsageError(f"{option} goes with --preset: a model that is there already has its own")
        return None
    if path is not None:
        raise UsageError(f"--model {path} and --preset {name} exclude each other: a preset is a model by itself")
    if backend == "torch":
        raise UsageError("--preset makes a bundle, which the torch backend does not run: leave --backend out")
    if backend == "tensorrt":
        raise UsageError("--preset makes a bundle without engines: build them (flamingo-rt build), and give it with "
                         "--model")
    from flamingo_rt.bench.random_bundle import RandomBundle

    lowering = "tensorrt" if backend == "ort-tensorrt-rtx" else "ort"
    return RandomBundle(name, dtype or compute or "fp32", quantize, work, compute or "fp32", lowering)


def _check_plot(plot: Path, overwrite: bool) -> None:
    """Refuse a chart that cannot be drawn or written, before anything is measured."""
    from flamingo_rt.files import check_file

    if plot.suffix.lower() not in PLOTS:
        raise UsageError(f"--plot {plot} ends in {plot.suffix or 'nothing'!r}: give a name that ends in .svg or .html")
    check_file(plot, overwrite, "--plot")
    if importlib.util.find_spec("matplotlib") is None:
        raise DependencyError("--plot needs matplotlib, which is not installed: pip install 'flamingo-rt[bench]'")
