"""Progress of a training run: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from flamingo_rt.printable import printable

if TYPE_CHECKING:
    from flamingo_rt.training.run_log import StepReport
    from flamingo_rt.training.run_progress import Progress

PLAIN_SECONDS = 30.0  # between lines where there is no terminal to draw a bar on


class TrainingProgress:
    """Shows step, losses, tokens or pictures a second, waiting for data, model FLOPs utilisation, and the time left."""

    def __init__(self, steps: int, shown: bool = True, unit: str = "tokens") -> None:
        """``shown``: whether this process of a run is the one that says anything. ``unit``: what the stage counts."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        from flamingo_rt.training.run_progress import RunProgress

        self._steps, self._unit, self._progress = steps, unit, RunProgress(steps)
        self._said = time.monotonic()
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"), BarColumn(), TextColumn("{task.description}"),
            TimeRemainingColumn(elapsed_when_finished=True), console=console,
            disable=not (console.is_terminal and shown),
        )
        self._damaged: set[str] = set()
        self._plain = not console.is_terminal and shown

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        self._task = self._bar.add_task("starting", total=self._steps)
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def start(self, lines: Iterable[str]) -> None:
        """Show lines about the run before its first step."""
        for line in lines:
            self._line(line)

    def step(self, report: StepReport) -> None:
        """Show one finished step, the samples that were damaged in it, and answers where there are some."""
        progress = self._progress.after(report)
        for line in dict.fromkeys(report.damaged):
            if line in self._damaged:  # a small source gives it again and again
                continue
            self._damaged.add(line)
            self._line(f"damaged, left out: {line}")
        text = _text(progress, self._unit)
        self._bar.update(self._task, completed=progress.step, description=printable(text))
        due = time.monotonic() - self._said > PLAIN_SECONDS or progress.step == self._steps
        if self._plain and (due or report.samples):
            self._line(f"step {progress.step}/{self._steps}  {text}  {progress.seconds_left / 60:.0f} min left")
            self._said = time.monotonic()
        for line in report.samples:
            self._line(f"  {line}")

    def _line(self, text: str) -> None:
        self._bar.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def _text(progress: Progress, unit: str) -> str:
    several = len(progress.loss) > 1
    losses = ", ".join(f"{name} {loss:.3f}" if several else f"{loss:.3f}" for name, loss in progress.loss.items())
    text = f"loss {losses}  {progress.tokens_per_second:,.0f} {unit}/s  waiting {progress.waiting_share:.0%}"
    return text if progress.mfu is None else f"{text}  MFU {progress.mfu:.0%}"
