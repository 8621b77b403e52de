"""``flamingo-rt train``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flamingo_rt.cli.dependencies import needs_extra
from flamingo_rt.cli.interrupts import command_again, on_interrupt
from flamingo_rt.cli.numbers import Number, count
from flamingo_rt.cli.paths import READ, WRITTEN
from flamingo_rt.printable import printable

if TYPE_CHECKING:
    from flamingo_rt.training.trainer import Progress

PLAIN_SECONDS = 30.0  # between lines where there is no terminal to draw a bar on


@click.group()
def command() -> None:
    """Train a model.

    \b
    Example:
      flamingo-rt train flamingo --preset tiny --out runs/tiny
    """


@command.command("flamingo")
@click.option("--preset", "preset_name", default="tiny", show_default=True, help="Sizes of the model.")
@click.option("--out", required=True, type=WRITTEN, metavar="FOLDER", help="Checkpoint to write.")
@click.option("--steps", type=count(), help="Optimizer steps.  [default: 3600]")
@click.option("--learning-rate", type=Number(0, 1e9, min_open=True), help="Peak learning rate.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of weights and data.  [default: 0]")
@click.option("--start-from", type=READ, metavar="FOLDER",
              help="Start from a checkpoint's weights, with a new schedule.")
@click.option("--questions", type=click.IntRange(0, 16), help="Questions about each picture.  [default: 2]")
@click.option("--resume", is_flag=True, help="Continue an unfinished run for the same --out.")
@click.option("--overwrite", is_flag=True, help="Replace --out when it exists.")
def flamingo(
    preset_name: str, out: Path, steps: int | None, learning_rate: float | None, seed: int | None,
    start_from: Path | None, questions: int | None, resume: bool, overwrite: bool,
) -> None:
    """Train on drawn scenes with captions and questions; nothing is downloaded.

    The state is saved every half minute beside --out; after a kill the same command with --resume continues.

    \b
    Example:
      flamingo-rt train flamingo --preset tiny --out runs/tiny
    """
    from flamingo_rt.presets import preset

    config = preset(preset_name)
    with needs_extra("train"):
        from flamingo_rt.training.trainer import TrainingOptions, state_path, train
    given: dict[str, Any] = {"steps": steps, "learning_rate": learning_rate, "seed": seed, "questions": questions}
    if start_from is not None:
        given["vision_task_weight"] = 0.0  # the vision encoder has learnt to see
    options = replace(TrainingOptions(), **{name: value for name, value in given.items() if value is not None})
    with on_interrupt(lambda: _left(state_path(out))), _Report(options.steps) as report:
        train(config, options, out, start_from=start_from, resume=resume, overwrite=overwrite, on_step=report.step)
    shown = printable(str(out))
    click.echo(f"wrote {shown}; next: flamingo-rt export --ckpt {shown} --validation scenes --out BUNDLE")


def _left(state: Path) -> str:
    """A line about the state that an interrupted run left, with the command that continues it."""
    if not state.exists():
        return "nothing was saved yet; the state is saved every half minute"
    return f"the state is in {state}; go on with: {command_again('--resume')}"


class _Report:
    """A progress bar on a terminal, a line now and then elsewhere: step, loss, tokens/s, time left."""

    def __init__(self, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._steps, self._loss, self._first = steps, 0.0, 0
        self._tokens, self._start, self._said = 0, time.monotonic(), time.monotonic()
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"), BarColumn(), TextColumn("{task.description}"),
            TimeRemainingColumn(elapsed_when_finished=True), console=console, disable=not console.is_terminal,
        )
        self._plain = not console.is_terminal

    def __enter__(self) -> _Report:
        self._bar.start()
        self._task = self._bar.add_task("starting", total=self._steps)
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def step(self, progress: Progress) -> None:
        """Show one finished step; the loss is smoothed over about 50."""
        now = time.monotonic()
        if not self._first:  # the clock starts here: the first step pays for what is set up once
            self._first, self._loss, self._start = progress.step, progress.loss, now
            return
        self._loss += (progress.loss - self._loss) * 0.02
        self._tokens += progress.tokens
        elapsed = max(now - self._start, 1e-3)
        text = f"loss {self._loss:.3f}  {self._tokens / elapsed:,.0f} tokens/s"
        self._bar.update(self._task, completed=progress.step, description=text)
        if self._plain and (now - self._said > PLAIN_SECONDS or progress.step == self._steps):
            done = progress.step - self._first
            left = elapsed / done * (self._steps - progress.step)
            click.echo(f"step {progress.step}/{self._steps}  {text}  {left / 60:.0f} min left", err=True)
            self._said = now
