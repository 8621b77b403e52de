"""Progress on stderr: one line for each stage, with a moving bar on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from flamingo_rt.printable import printable
from flamingo_rt.progress import Advance


class ProgressBar:
    """A `flamingo_rt.progress.Progress`: each stage is a line when it ends and, on a terminal, a bar until then."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @contextmanager
    def __call__(self, stage: str, total: int) -> Iterator[Advance]:
        if not sys.stderr.isatty():
            yield lambda amount: None
        else:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

            name = TextColumn("         {task.description}")
            columns = (name, BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
            with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
                task = bars.add_task(stage, total=total or None)
                yield lambda amount: bars.advance(task, amount)
        click.echo(f"{time.perf_counter() - self._start:6.1f} s  {printable(stage)}", err=True)
