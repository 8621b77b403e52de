"""Lines at the start of a training run: what is trained, on which data, from which step, and a warm-up without an
end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flamingo_rt.training.options import RunOptions

if TYPE_CHECKING:
    from flamingo_rt.training.stage import Dataset, Stage


def start_lines(stage: Stage, options: RunOptions, state: Path, done: int, resume: bool) -> Iterator[str]:
    """Describe a run of which ``done`` steps were read from ``state``; ``resume``: whether that was asked for."""
    if done:
        yield f"goes on after step {done} of {options.steps}, from {state}"
    elif resume:
        yield f"there is no unfinished run at {state}: starts from step 1"
    parameters = list(stage.model.parameters())
    trained = sum(entry.numel() for entry in parameters if entry.requires_grad)
    yield (f"training {trained:,} of {sum(entry.numel() for entry in parameters):,} parameters in {options.steps:,} "
           f"steps on {', '.join(map(_described, stage.datasets))}")
    if options.steps <= options.warmup_steps:
        peak = options.learning_rate_at(options.steps - 1)
        yield (f"warmup_steps is {options.warmup_steps:,}, and there are no more steps: the learning rate only rises, "
               f"to {peak:g} at the last (learning_rate {options.learning_rate:g})")


def _described(dataset: Dataset) -> str:
    found = dataset.batches.fingerprint()
    content = str(found["data"]).rpartition(", ")[0]  # without its last part, a digest or a seed
    return f"{dataset.name} ({content}; batch {found['batch']})"
