"""Logs of a run, beside its output: a line of JSON for each step in ``OUT.log.jsonl``, and TensorBoard's files.

A run that goes on after a kill may have logged steps that its last state does not hold. Their lines are removed before
the first new one is written, so that each step is there once. The last line of a finished run is
``{"finished": steps}``; a later run with the same output removes it with its first step.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from flamingo_rt.errors import DataError
from flamingo_rt.files import check_file, path_beside, replacing_file

FINISHED = "finished"  # the key of the end mark, whose value is the number of steps


@dataclass(frozen=True)
class StepReport:
    """One step, counted from 1: mean loss by dataset, norm of the gradient before it was clipped, tokens (in stage 1
    pictures) of all ranks, seconds, and how many of them were spent waiting for data; the share of the measured matrix
    rate that was reached, where that is known; the stage's own numbers; damaged samples, each with its reason; sample
    answers where it was time for them. A step that could not be finished, since its loss is no number, names all
    samples of that batch, ``suspects``, and the run ends with it."""

    step: int
    losses: Mapping[str, float]
    gradient_norm: float
    learning_rate: float
    tokens: int
    seconds: float
    waiting: float
    mfu: float | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()
    suspects: tuple[str, ...] = ()

    @property
    def waiting_share(self) -> float:
        """Share of the step that was spent waiting for data."""
        return self.waiting / max(self.seconds, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all ranks in a second."""
        return self.tokens / max(self.seconds, 1e-9)


def log_path(out: Path) -> Path:
    """File of a line for each step of the run that writes ``out``."""
    return path_beside(out, ".log.jsonl")


def tensorboard_path(out: Path) -> Path:
    """Folder of TensorBoard's files of the run that writes ``out``."""
    return path_beside(out, ".tensorboard")


class RunLog:
    """Writes reports of steps, in order. Only the first rank has one.

    Nothing is opened or changed before the first report. A run that begins at step 1 replaces the log of an earlier one
    with the same ``out``. TensorBoard's files are written where its package is installed.
    """

    def __init__(self, out: Path) -> None:
        """Raises `UsageError` or `DataError` where no log can be written for ``out``."""
        self._path, self._tensorboard = log_path(out), tensorboard_path(out)
        check_file(self._path, overwrite=True)
        self._file: IO[str] | None = None
        self._events: _TensorBoard | None = None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add(self, report: StepReport) -> None:
        """Write a step. Raises `DataError` for a full disk: the state stays as it was saved last."""
        with self._explained():
            if self._file is None:
                self._open(report.step)
            self._write(_entries(report))
            if self._events is not None:
                self._events.add(report)

    def finish(self, steps: int) -> None:
        """Write the end mark of a run of so many steps, whose result is in its place. Raises `DataError` for a full
        disk."""
        with self._explained():
            if self._file is None:  # a resumed run that had no step to take
                self._open(steps + 1)
            self._write({FINISHED: steps})

    def _write(self, entries: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(entries, allow_nan=False) + "\n")
        self._file.flush()  # a killed run keeps the line

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"cannot write the log {self._path}: {error}; mend that, and go on with --resume"
            ) from error

    def close(self) -> None:
        """Write what is still held back."""
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()
        self._file = self._events = None

    def _open(self, step: int) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _keep_before(self._path, step)
        self._file = self._path.open("a", encoding="utf-8", newline="\n")
        if importlib.util.find_spec("tensorboard") is not None:
            self._events = _TensorBoard(self._tensorboard, step)


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log that are whole, as they were written; half a line, left by a kill, is passed over. Raises
    `OSError`."""
    with path.open("rb") as file:
        for line in file:
            try:
                entries = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entries, dict) and isinstance(entries.get("step"), int) and line.endswith(b"\n"):
                yield entries


def last_step(out: Path) -> int:
    """The last step that the log of the run that wrote ``out`` holds; 0 without a log that can be read."""
    try:
        return max((entries["step"] for entries in read_log(log_path(out))), default=0)
    except OSError:
        return 0


def finished_steps(out: Path) -> int:
    """The number of steps of the run that wrote ``out``, by the end mark of its log; 0 where the log does not end with
    one: that run, or a later one with the same ``out``, is not finished."""
    try:
        with log_path(out).open("rb") as file:
            lines = deque(file, 1)
        found = json.loads(lines[0]) if lines else None
    except (OSError, ValueError, RecursionError):
        return 0
    steps = found.get(FINISHED) if isinstance(found, dict) else None
    return steps if isinstance(steps, int) else 0


def _keep_before(path: Path, step: int) -> None:
    """Remove the lines of ``step`` and later ones, and what is no whole line."""
    if not path.exists():
        return
    with replacing_file(path) as beside, beside.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(entries) + "\n" for entries in read_log(path) if entries["step"] < step)


def _entries(report: StepReport) -> dict[str, Any]:
    """Entries of a line: numbers that are not finite are null, since JSON has none; lists that hold nothing are left
    out."""
    entries: dict[str, Any] = {
        "step": report.step,
        "loss": {name: _number(loss) for name, loss in report.losses.items()},
        "gradient_norm": _number(report.gradient_norm),
        "learning_rate": report.learning_rate,
        "tokens": report.tokens,
        "seconds": round(report.seconds, 4),
        "waiting_share": round(report.waiting_share, 4),
        "mfu": None if report.mfu is None else _number(round(report.mfu, 4)),
        "scalars": {name: _number(value) for name, value in report.scalars.items()},
    }
    return entries | {name: list(lines) for name, lines in _lists(report).items() if lines}


def _lists(report: StepReport) -> dict[str, Sequence[str]]:
    return {"damaged": report.damaged, "samples": report.samples, "suspects": report.suspects}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


class _TensorBoard:
    """The same numbers in TensorBoard's files; steps from ``first`` on that an earlier run left there are hidden."""

    def __init__(self, folder: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first, flush_secs=30)

    def add(self, report: StepReport) -> None:
        scalars = {
            **{f"loss/{name}": loss for name, loss in report.losses.items()},
            "gradient_norm": report.gradient_norm, "learning_rate": report.learning_rate,
            "tokens_per_second": report.tokens_per_second, "waiting_share": report.waiting_share,
            **({} if report.mfu is None else {"mfu": report.mfu}),
            **report.scalars,
        }
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, report.step)
        for name, lines in _lists(report).items():
            if lines:  # indented by four spaces, Markdown shows a text as it is
                self._writer.add_text(name, "\n".join(f"    {line}" for line in lines), report.step)

    def close(self) -> None:
        self._writer.close()
