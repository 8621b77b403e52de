"""A run of steps within a budget, and the file of its outcomes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_steps.gpu_plan import Step
from benchmarks.processes import run
from flamingo_rt.files import replacing_file

LEAST = 5.0  # seconds in which a step can do something
KEPT = 500  # characters of an error


class Session:
    """A run of steps. ``about`` is the first line of the file at ``path``; ``seconds`` the budget, None for no end."""

    def __init__(self, path: Path, about: dict[str, Any], seconds: float | None) -> None:
        self.path, self.outcomes, self._about, self._seconds = path, list[dict[str, Any]](), about, seconds
        self._start, self._spent = time.monotonic(), 0.0

    def run(self, step: Step) -> dict[str, Any]:
        """Run a step until the shares of the budget up to its own are used up. Without time for it, it is skipped."""
        self._spent += step.share
        limit = None
        if self._seconds is not None:
            limit = self._seconds * min(self._spent / 100, 1.0) - self.elapsed()
            if limit < LEAST:
                return self.add(step.name, step.system, skipped="no time was left for it")
        print(f"== {step.name}{': ' if step.system else ''}{step.system}", flush=True)
        try:
            finished = run(step.command, echo=True, together=True, limit=limit)
        except OSError as error:
            return self.add(step.name, step.system, error=f"{step.command[0]} cannot be started: {error}")
        records, more = list(objects(finished.output)), {"seconds": round(finished.seconds, 1)}
        if finished.status and limit is not None and finished.seconds >= limit:
            more["error"] = f"ended after its {limit:.0f} s; what it told before stands"
        elif finished.status:
            told = [line.strip() for line in finished.output.splitlines() if line.strip() and line[0] != "{"]
            more["error"] = f"status {finished.status}: {(told or ['it told nothing'])[-1]}"[:KEPT]
        elif records and "skipped" in records[-1]:
            more["skipped"] = records[-1]["skipped"]
        return self.add(step.name, step.system, records, **more)

    def add(self, step: str, system: str, records: Sequence[dict[str, Any]] = (), **more: Any) -> dict[str, Any]:
        """Keep an outcome and write the whole file, beside its place first: a kill leaves the last one."""
        self.outcomes.append({"step": step, "system": system, "records": list(records), **more})
        lines = [self._about | {"elapsed": round(self.elapsed(), 1)}, *self.outcomes]
        with replacing_file(self.path) as beside:
            beside.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        return self.outcomes[-1]

    def elapsed(self) -> float:
        """Seconds since the session began."""
        return time.monotonic() - self._start


def objects(output: str) -> Iterator[dict[str, Any]]:
    """The lines of an output that are JSON objects; one that was cut off is none."""
    for line in output.splitlines():
        try:
            if line.startswith("{"):
                yield json.loads(line)
        except ValueError:
            continue
