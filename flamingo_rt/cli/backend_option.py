"""Options of the commands that run a model: ``--backend``, ``--threads`` and how far engines are trusted."""

from __future__ import annotations

from collections.abc import Callable

import click

from flamingo_rt.cores import check_threads

backend_option = click.option(
    "--backend", default="auto", show_default=True,
    help="ort (bundles, CPU), ort-cuda or ort-tensorrt-rtx (bundles, GPU), tensorrt (their engines, GPU), torch "
    "(checkpoints), or auto: torch for a checkpoint, else the first of tensorrt, ort-cuda and ort that runs here.",
)


def trust_options(command: Callable) -> Callable:
    """``--trust-engines`` and ``--allow-engine-host-code``, as ``trust_engines`` and ``allow_host_code``."""
    host_code = click.option(
        "--allow-engine-host-code", "allow_host_code", is_flag=True,
        help="With --trust-engines: also version-compatible engines, which bring a runtime that runs like any program.",
    )
    engines = click.option(
        "--trust-engines", is_flag=True,
        help="Run engines of the bundle that you did not build on this machine. Engines are code.",
    )
    return engines(host_code(command))


def _threads(context: click.Context, parameter: click.Parameter, threads: int | None) -> int | None:
    """Refuse too many threads before a model is read."""
    check_threads(threads)
    return threads


threads_option = click.option(
    "--threads", type=click.IntRange(1, 1024), callback=_threads,
    help="Cores for one operator, at most those that there are. Default: all.",
)
