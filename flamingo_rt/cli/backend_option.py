"""``--backend``, of the commands that run a model."""

from __future__ import annotations

import click

backend_option = click.option(
    "--backend", default="auto", show_default=True,
    help="ort (bundles, CPU), ort-cuda or ort-tensorrt-rtx (bundles, GPU), tensorrt (their engines, GPU), torch "
    "(checkpoints), or auto: the first of tensorrt, ort-cuda and ort that runs here.",
)
