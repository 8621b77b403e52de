"""The parts one after the other within the budget, and the result file, which is written after every row."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.plan import Part, Skipped
from benchmarks.gpu_parts.rows import Row, parsed
from benchmarks.processes import Finished, run
from flamingo_rt.files import replacing_file

FORMAT = 1
WHOLE = 100.0  # of the shares
Result = dict[str, Any]


class Session:
    """A run of parts. ``seconds`` is the whole budget, None for no end."""

    def __init__(
        self, path: Path, about: Result, seconds: float | None, clock: Callable[[], float] = time.monotonic,
        runner: Callable[..., Finished] = run,
    ) -> None:
        self.path, self.rows = path, []
        self._about, self._seconds, self._clock, self._runner = about, seconds, clock, runner
        self._start = clock()

    def run(self, parts: Sequence[Part | Skipped], spent: float = 0.0) -> None:
        """Every part in its turn. A part must end when the shares up to its own, with those ``spent`` before, are used
        up: what an early one leaves is there for later ones."""
        for part in parts:
            if isinstance(part, Skipped):
                self._add(part, {"skipped": part.why})
                continue
            spent += part.share
            limit = None if self._seconds is None else self._seconds * min(spent, WHOLE) / WHOLE - self.elapsed()
            self._run(part, limit)

    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._start

    def _run(self, part: Part, limit: float | None) -> None:
        why_not = hindrance(part, limit)
        if why_not:
            self._add(part, {"skipped": why_not})
            return
        print(f"== {part.name}{': ' if part.system else ''}{part.system}", flush=True)
        told: list[Row] = []

        def on_line(line: str) -> None:
            row = parsed(line)
            if row is not None:
                told.append(row)
                self._add(part, row)

        finished = self._runner(list(part.command), None, echo=True, limit=limit, on_line=on_line)
        if finished.status and not any("error" in row for row in told):
            ended = limit is not None and finished.seconds >= limit
            why = f"ended after its {limit:.0f} s" if ended else f"its process ended with status {finished.status}"
            self._add(part, {"error": f"{why}; what it told before stands"})
        self._add(part, {"measure": "the whole part", "value": round(finished.seconds, 1), "unit": "s", "key": "time"})

    def _add(self, part: Part | Skipped, row: Row) -> None:
        self.rows.append({"part": part.name, "system": part.system, **row})
        write(self.path, self._about | {"seconds": round(self.elapsed(), 1)}, self.rows)


def hindrance(part: Part, limit: float | None) -> str:
    """Why a part that may take ``limit`` seconds is not run; nothing where it is."""
    missing = [path for path in part.needs if not path.exists()]
    if part.done:
        return "it is there already"
    if missing:
        return f"there is no {missing[0]}: the part that makes it did not"
    if limit is not None and limit < part.least:
        return f"{max(limit, 0.0):.0f} s are left for it, it needs {part.least:.0f}"
    return ""


def write(path: Path, about: Result, rows: Sequence[Row]) -> None:
    """A kill leaves what was there. One row a line."""
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    head = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in about.items())
    with replacing_file(path) as beside:
        beside.write_text(f"{{\n{head} \"rows\": [\n{lines}\n ]\n}}\n", encoding="utf-8")
