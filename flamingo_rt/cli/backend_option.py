"""``--backend`` and ``--threads``, of the commands that run a model."""

from __future__ import annotations

import click

from flamingo_rt.cores import check_threads

backend_option = click.option(
    "--backend", default="auto", show_default=True,
    help="ort (bundles, CPU), ort-cuda or ort-tensorrt-rtx (bundles, GPU), tensorrt (their engines, GPU), torch "
    "(checkpoints), or auto: the first of tensorrt, ort-cuda and ort that runs here.",
)


def _threads(context: click.Context, parameter: click.Parameter, threads: int | None) -> int | None:
    """Refuse too many before a model is read."""
    check_threads(threads)
    return threads


threads_option = click.option(
    "--threads", type=click.IntRange(1, 1024), callback=_threads,
    help="Cores for one operator, at most those that there are. Default: all.",
)
