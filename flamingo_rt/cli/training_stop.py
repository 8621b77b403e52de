"""Ctrl-C and SIGTERM during training: which signals a run heeds, and what is said when one ended it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flamingo_rt.cli.interrupts import command_again
from flamingo_rt.training.stop_signals import RunStopped, StopSignals

if TYPE_CHECKING:
    from flamingo_rt.training.sharding import World


def heeded_signals(world: World) -> StopSignals:
    """The signals after which a run saves its state: Ctrl-C, and what a scheduler sends before it kills."""

    def noted(number: int) -> None:
        if number == signal.SIGINT and world.is_first and sys.stderr.isatty():
            # Not by print: the signal may have come within one, and a stream cannot be written to twice at a time.
            os.write(2, b"\nfinishing this step and saving; Ctrl-C again ends at once\n")

    return StopSignals((signal.SIGINT, signal.SIGTERM), noted)


def stopped_line(stopped: RunStopped, steps: int, world: World) -> str:
    """A line about a run of so many ``steps`` that was asked to stop, with the command that continues it."""
    if not stopped.step:
        return "interrupted before the first step: nothing was saved"
    return f"interrupted: saved step {stopped.step} of {steps} in {stopped.state}; {_continued(world)}"


def left_line(state: Path, world: World) -> str:
    """A line about the state that a run left which ended at once."""
    return f"the state is in {state}; {_continued(world)}" if state.exists() else "nothing was saved yet"


def _continued(world: World) -> str:
    if world.size > 1:
        return "go on with the same command and --resume, on any number of processes"
    return f"go on with: {command_again('--resume')}"
