"""Run the steps one after the other within the budget, and write what each found at once.

The result file is JSON lines: one about the machine and the sizes, then one for each step:

    {"step": "bench", "system": "tensorrt, fp16", "status": 0, "seconds": 41.2, "records": [{…}]}
    {"step": "build", "system": …, "skipped": why}      {"step": …, "records": […], "error": what}

``records`` are the JSON lines that the step's command printed, unchanged.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_steps.gpu_plan import Planned, Skipped, Step
from benchmarks.processes import Finished, run
from flamingo_rt.files import replacing_file

FORMAT = 2
WHOLE = 100.0  # of the shares
KEPT = 500  # characters of an error
Outcome = dict[str, Any]


class Session:
    """A run of steps. ``seconds`` is the whole budget, None for no end; ``about`` is the first line of the file."""

    def __init__(
        self, path: Path, about: dict[str, Any], seconds: float | None, clock: Callable[[], float] = time.monotonic,
        runner: Callable[..., Finished] = run,
    ) -> None:
        self.path, self.outcomes = path, list[Outcome]()
        self._about, self._seconds, self._clock, self._runner = about, seconds, clock, runner
        self._start, self._spent = clock(), 0.0

    def run(self, steps: Sequence[Planned]) -> None:
        """Run each step in turn, also over several calls.

        A step is ended when the shares of the budget up to its own are used up; time that an early one leaves is there
        for later ones.
        """
        for step in steps:
            if isinstance(step, Skipped):
                self._add({"step": step.name, "system": step.system, "skipped": step.why})
                continue
            self._spent += step.share
            limit = None
            if self._seconds is not None:
                limit = self._seconds * min(self._spent, WHOLE) / WHOLE - self.elapsed()
            self._add({"step": step.name, "system": step.system, **self._outcome(step, limit)})

    def elapsed(self) -> float:
        """Seconds since the session began."""
        return self._clock() - self._start

    def record(self, step: str) -> dict[str, Any]:
        """The last record of a step; empty where it told nothing."""
        return next((each["records"][-1] for each in self.outcomes if each["step"] == step and each.get("records")), {})

    def _outcome(self, step: Step, limit: float | None) -> Outcome:
        why_not = hindrance(step, limit)
        if why_not:
            return {"skipped": why_not}
        print(f"== {step.name}{': ' if step.system else ''}{step.system}", flush=True)
        records: list[dict[str, Any]] = []
        told: list[str] = []

        def on_line(line: str) -> None:
            record = parsed(line)
            if record is not None:
                records.append(record)
            elif line.strip():
                told.append(line.strip())

        finished = self._runner(list(step.command), echo=True, together=True, limit=limit, on_line=on_line)
        outcome = {"status": finished.status, "seconds": round(finished.seconds, 1), "records": records}
        skipped = next((record["skipped"] for record in records if "skipped" in record), None)
        if skipped is not None:
            outcome["skipped"] = skipped
        elif finished.status and limit is not None and finished.seconds >= limit:
            outcome["error"] = f"ended after its {limit:.0f} s; what it told before stands"
        elif finished.status:
            outcome["error"] = f"status {finished.status}: {told[-1] if told else 'it told nothing'}"[:KEPT]
        return outcome

    def _add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._write()

    def _write(self) -> None:
        """Write the whole file beside its place first: a kill leaves the last one."""
        lines = [self._about | {"elapsed": round(self.elapsed(), 1)}, *self.outcomes]
        with replacing_file(self.path) as beside:
            beside.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def hindrance(step: Step, limit: float | None) -> str:
    """The reason why a step that may take ``limit`` seconds is not run; empty where it is."""
    missing = [path for path in step.needs if not path.exists()]
    if step.done:
        return "it is there already"
    if missing:
        return f"there is no {missing[0]}: the step that makes it did not"
    if limit is not None and limit < step.least:
        return f"{max(limit, 0.0):.0f} s are left for it, it needs {step.least:.0f}"
    return ""


def parsed(line: str) -> dict[str, Any] | None:
    """The JSON object of a line of output, or None for other output."""
    if not line.startswith("{"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
