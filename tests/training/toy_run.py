"""Runs in the two ranks that started this: of the toy stage together, then in the first alone, then together again; one
of which the second rank is sent SIGTERM in step 3; and of stage 3 together.

Prints the losses of every step as JSON. Usage, by torch.distributed.run: toy_run.py FOLDER JSON-OF-RUN-OPTIONS
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from captioned_run import captioned_run, reports_of
from toy_stage import ToyStage, two_datasets

from flamingo_rt.training.loop import train
from flamingo_rt.training.options import FlamingoOptions, RunOptions
from flamingo_rt.training.sharding import World, join_world, leave_world
from flamingo_rt.training.stop_signals import RunStopped, StopSignals


def stage_3(folder: Path) -> FlamingoOptions:
    """Options of a run with low-rank updates and kept features, on the data in ``folder``."""
    return replace(captioned_run(folder / "data"), lora=2, cache_features=str(folder / "features"))


def run(out: Path, options: RunOptions, world: World, stop: int = -1) -> None:
    """Go on with the run at ``out``, until the data of step ``stop`` cannot be drawn."""

    def on_step(report) -> None:
        print(json.dumps([str(out.name), report.step, dict(report.losses), report.gradient_norm]), flush=True)

    try:
        train(ToyStage(two_datasets(error_at=stop), is_first=world.is_first), options, out, world, resume=True,
              on_step=on_step)
    except RuntimeError as error:
        if "cannot draw" not in str(error):
            raise


class Signalled(ToyStage):
    """A stage whose process is sent SIGTERM in its third step, unless it is the first."""

    calls = 0

    def targets(self, batch: Any) -> int:
        self.calls += 1
        if self.calls == 5 and not self.is_first:  # two datasets a step
            os.kill(os.getpid(), signal.SIGTERM)
        return super().targets(batch)


def run_to_signal(out: Path, options: RunOptions, world: World) -> None:
    """Train until the signal; prints after which step all ranks stopped, as each rank has it."""
    try:
        train(Signalled(two_datasets(), is_first=world.is_first), replace(options, save_seconds=1e9), out, world,
              stop=StopSignals([signal.SIGTERM]))
    except RunStopped as stopped:
        for step, number in world.gathered((stopped.step, stopped.number)):
            if world.is_first:
                print(json.dumps(["stops", step, {}, number]), flush=True)


def main(folder: str, text: str) -> None:
    torch.set_num_threads(1)
    together, options = join_world(), RunOptions(**json.loads(text))
    out = Path(folder) / "mixed"
    run(Path(folder) / "together", options, together)
    run(out, options, together, stop=2)
    if together.is_first:
        run(out, options, World(), stop=4)
    together.gathered(None)  # the others wait for the first
    run(out, options, together)
    stopped = Path(folder) / "stopped"
    run_to_signal(stopped, options, together)
    run(stopped, options, together)
    for report in reports_of(stage_3(Path(folder)), Path(folder) / "stage 3", together):
        print(json.dumps(["stage 3", report.step, dict(report.losses), report.gradient_norm]), flush=True)
    leave_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
