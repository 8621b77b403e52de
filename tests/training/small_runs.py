"""Runs of stage 3 that take a moment: the model `small`, trained from nothing, and its fine-tuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flamingo_rt.training.flamingo_start import open_flamingo_stage
from flamingo_rt.training.loop import train
from flamingo_rt.training.options import DataOptions, FlamingoOptions, RunOptions
from flamingo_rt.training.sharding import World

SCENES = 20
RUN = RunOptions(steps=4, learning_rate=1.5e-3, warmup_steps=2, weight_decay=0.05, workers=0, save_seconds=1e9)
# From nothing: all parts have random weights and are trained.
WHOLE = FlamingoOptions(
    run=RUN, data=(DataOptions("scenes", batch=2, questions=1),), preset="small", unfreeze=("vision", "language"),
    initial_gate=1.0,
)


def run(out: Path, options: FlamingoOptions = WHOLE, stop: int = 0, **more):
    """The reports of a run; broken off after the report of step ``stop``."""
    seen = []

    def on_step(report) -> None:
        seen.append(report)
        if report.step == stop:
            raise RuntimeError("broken off")

    if not stop:
        train(open_flamingo_stage(options, World()), options.run, out, World(), on_step=on_step, **more)
        return seen
    with pytest.raises(RuntimeError, match="broken off"):
        train(open_flamingo_stage(options, World()), options.run, out, World(), on_step=on_step, **more)
    return seen


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def from_checkpoint(path: Path, **changes) -> FlamingoOptions:
    """A fine-tuning run with everything frozen but the bridge."""
    return replace(FlamingoOptions(run=RUN, data=WHOLE.data, start_from=str(path)), **changes)
