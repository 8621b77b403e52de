"""A short run of stage 3, in one process or as one of two ranks. Usage, as the second rank: second_flamingo_rank.py
FOLDER KIND"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from made_pairs import meeting

from flamingo_rt.training import sample_answers
from flamingo_rt.training.flamingo_start import open_flamingo_stage
from flamingo_rt.training.loop import train
from flamingo_rt.training.options import DataOptions, FlamingoOptions, RunOptions
from flamingo_rt.training.run_log import StepReport
from flamingo_rt.training.sharding import World

RUN = RunOptions(steps=2, warmup_steps=1, learning_rate=1e-3, workers=0, checkpoint_activations=True, sample_steps=2)
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"run": RUN, "lora": 2},
    "output": {"run": RUN, "new_tokens": "output"},
    "embedding": {"run": replace(RUN, precision="bf16"), "unfreeze": ("embedding",)},
}


def run(folder: Path, out: str, world: World, kind: str) -> list[StepReport]:
    """Fine-tune ``folder/small`` for two steps; gives their reports."""
    data = DataOptions("scenes", batch=4, questions=1)
    options = FlamingoOptions(data=(data,), start_from=str(folder / "small"), **KINDS[kind])
    reports: list[StepReport] = []
    with patch.object(sample_answers, "MOST_TOKENS", 2):
        train(open_flamingo_stage(options, world), options.run, folder / out, world, on_step=reports.append)
    return reports


if __name__ == "__main__":
    torch.set_num_threads(1)
    with meeting(Path(sys.argv[1]), 1) as both:
        run(Path(sys.argv[1]), "two", both, sys.argv[2])
