"""Progress of a training run: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from flamingo_rt.printable import printable

if TYPE_CHECKING:
    from flamingo_rt.training.run_log import Progress
    from flamingo_rt.training.sharding import World

PLAIN_SECONDS = 30.0  # between lines where there is no terminal to draw a bar on


class TrainingProgress:
    """Shows step, losses, tokens/s, waiting for data, model FLOPs utilisation, and the time left; in the first process
    of a run."""

    def __init__(self, steps: int, world: World) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._steps, self._first = steps, world.is_first
        self._said = time.monotonic()
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"), BarColumn(), TextColumn("{task.description}"),
            TimeRemainingColumn(elapsed_when_finished=True), console=console,
            disable=not (console.is_terminal and world.is_first),
        )
        self._plain = not console.is_terminal and world.is_first

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        self._task = self._bar.add_task("starting", total=self._steps)
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def step(self, progress: Progress) -> None:
        """Show one finished step, the samples that were damaged in it, and answers where there are some."""
        for line in progress.damaged:
            self._line(f"damaged, left out: {line}")
        text = _text(progress)
        self._bar.update(self._task, completed=progress.step, description=printable(text))
        due = time.monotonic() - self._said > PLAIN_SECONDS or progress.step == self._steps
        if self._plain and (due or progress.samples):
            self._line(f"step {progress.step}/{self._steps}  {text}  {progress.seconds_left / 60:.0f} min left")
            self._said = time.monotonic()
        for line in progress.samples:
            self._line(f"  {line}")

    def _line(self, text: str) -> None:
        self._bar.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def _text(progress: Progress) -> str:
    parts = [f"{name} {loss:.3f}" for name, loss in progress.losses.items()]
    losses = f"loss {parts[0].rsplit(' ', 1)[1]}" if len(parts) == 1 else "loss " + " ".join(parts)
    text = f"{losses}  {progress.tokens_per_second:,.0f} tokens/s  waiting {progress.waiting_share:.0%}"
    return text if progress.utilisation is None else f"{text}  MFU {progress.utilisation:.0%}"
