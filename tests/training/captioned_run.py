"""Fine-tuning runs of a small checkpoint on two folders of captioned pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from made_data import captions, png
from small_model import small_checkpoint

from flamingo_rt.training.flamingo_start import open_flamingo_stage
from flamingo_rt.training.loop import train
from flamingo_rt.training.options import DataOptions, FlamingoOptions, RunOptions
from flamingo_rt.training.run_log import StepReport
from flamingo_rt.training.sharding import World

RUN = RunOptions(steps=4, learning_rate=5e-4, warmup_steps=2, workers=0, max_damaged=0.5)
PICTURES = 10 + 8  # that can be decoded, all different


def captioned_run(folder: Path) -> FlamingoOptions:
    """Options of a run on data in this folder, which is made where it is missing. Of two datasets one has a picture
    that cannot be decoded; epochs end within the run."""
    if not folder.exists():
        captions(folder / "whole", 10)
        torn = captions(folder / "torn", 9, step=7)
        for name, content in {"0.png": png(250), "5.png": png(251), "4.png": b"no picture"}.items():
            (torn / name).write_bytes(content)
        small_checkpoint(folder / "model")
    data = (DataOptions(str(folder / "whole"), batch=4, chunks=(1, 2)),
            DataOptions(str(folder / "torn"), batch=6, weight=0.3))
    return FlamingoOptions(run=RUN, data=data, start_from=str(folder / "model"))


def reports_of(options: FlamingoOptions, out: Path, world: World | None = None, **run: Any) -> list[StepReport]:
    """Train; gives the reports of all steps in the first rank, none in others. ``run`` changes options of the run."""
    options, world = replace(options, run=replace(options.run, **run)), world or World()
    reports: list[StepReport] = []
    train(open_flamingo_stage(options, world), options.run, out, world, on_step=reports.append)
    return reports
