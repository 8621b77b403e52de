"""Options of the commands that run a model, from ``--backend`` to how far engines are trusted, as one object."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flamingo_rt.cores import check_threads

if TYPE_CHECKING:
    from flamingo_rt.runtime.model import Model

COMPUTE_HELP = "Type that the torch backend computes in on a GPU.  [default: bf16 where the GPU has it, else fp32]"


@dataclass(frozen=True)
class BackendChoice:
    """The options, by the names that `flamingo_rt.loading.load` has for them."""

    backend: str
    device: str | None
    compute: str | None
    cuda_graphs: bool
    trust_engines: bool
    allow_host_code: bool
    threads: int | None

    def load(self, path: Path | None, **more: Any) -> Model:
        """Open a model with these options and ``more`` of `flamingo_rt.loading.load`."""
        from flamingo_rt.loading import load

        return load(path, **vars(self), **more)


def _threads(context: click.Context, parameter: click.Parameter, threads: int | None) -> int | None:
    """Refuse too many threads before a model is read."""
    check_threads(threads)
    return threads


def backend_options(compute_help: str = COMPUTE_HELP) -> Callable[[Callable], Callable]:
    """Give a command these options, as its argument ``chosen``, a `BackendChoice`."""
    options = (
        click.option(
            "--backend", default="auto", show_default=True,
            help="ort (bundles, CPU), ort-cuda or ort-tensorrt-rtx (bundles, GPU), tensorrt (their engines, GPU), "
            "torch (checkpoints), or auto: torch for a checkpoint, else the first of tensorrt, ort-cuda and ort that "
            "runs here.",
        ),
        click.option(
            "--device", metavar="NAME",
            help="Device of the torch backend: cpu, cuda, or cuda:N for one of several GPUs.  [default: cpu]",
        ),
        click.option("--compute", type=click.Choice(["fp32", "fp16", "bf16"]), help=compute_help),
        click.option(
            "--cuda-graphs/--no-cuda-graphs", default=True, show_default=True,
            help="Capture decode steps on a GPU as CUDA graphs, where that can be done.",
        ),
        click.option(
            "--trust-engines", is_flag=True,
            help="Run engines of the bundle that you did not build on this machine. Engines are code.",
        ),
        click.option(
            "--allow-engine-host-code", "allow_host_code", is_flag=True,
            help="With --trust-engines: also version-compatible engines, which bring a runtime that runs like any "
            "program.",
        ),
        click.option(
            "--threads", type=click.IntRange(1, 1024), callback=_threads,
            help="Cores for one operator, at most those that there are. Default: all.",
        ),
    )
    names = [field.name for field in fields(BackendChoice)]

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def call(**given: Any) -> Any:
            return command(chosen=BackendChoice(**{name: given.pop(name) for name in names}), **given)

        decorated: Callable = call
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate
