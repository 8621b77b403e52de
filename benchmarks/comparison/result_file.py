"""The dated result file: one comparison on one machine, filled run by run.

    {"format": 1, "date": …, "preset": …, "machine": {…}, "builds": {folder: record}, "runs": {system: record}}

A run that is made again replaces its record; everything else stays. Samples are kept as they were measured.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamingo_rt.files import replacing_file

FORMAT = 1
Record = dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """Median, fastest and slowest of some samples."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        return cls(statistics.median(samples), min(samples), max(samples))


def result_path(folder: Path, date: str, machine: str, preset: str) -> Path:
    return folder / f"{date}-{machine}-{preset}.json"


def read_results(path: Path, date: str, preset: str, machine: Record) -> Record:
    """Read the file, or begin a new record where there is none. Ends the program when it is another comparison's."""
    if not path.is_file():
        return {"format": FORMAT, "date": date, "preset": preset, "machine": machine, "builds": {}, "runs": {}}
    results = json.loads(path.read_text(encoding="utf-8"))
    if results.get("format") != FORMAT or results["preset"] != preset:
        raise SystemExit(f"{path} is of another comparison: move it away, or give another --date or --machine")
    for key in ("cpu", "cores"):
        if results["machine"][key] != machine[key]:
            raise SystemExit(f"{path} was measured on {results['machine']['cpu']}, this is {machine['cpu']}: "
                             "give another --machine")
    return results


def merged(results: Record, part: str, name: str, record: Record) -> Record:
    """The results with a record of ``builds`` or ``runs`` added or replaced."""
    return results | {part: results[part] | {name: record}}


def write_results(path: Path, results: Record) -> None:
    """Write the file whole or not at all, with one record a line, so that diffs can be read."""
    lines = []
    for key, value in results.items():
        if key in ("builds", "runs") and value:
            entries = ",\n".join(f"  {json.dumps(name)}: {json.dumps(record)}" for name, record in value.items())
            lines.append(f" {json.dumps(key)}: {{\n{entries}\n }}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    with replacing_file(path) as beside:
        beside.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def case_of(record: Record, shots: int, part: str = "cases") -> Record | None:
    """The record of a number of shots; ``part`` is ``cases``, ``compiled`` or ``speculation``."""
    return next((case for case in record.get(part) or () if case["shots"] == shots), None)


def first_token(case: Record) -> Spread:
    """Milliseconds to the first token."""
    return Spread.of(case["first_token_ms"])


def per_token(case: Record) -> Spread:
    """Milliseconds from token to token: the median over all; fastest and slowest answer by its own median."""
    answers = [statistics.median(gaps) for gaps in case["token_ms"]]
    return Spread(statistics.median(gap for gaps in case["token_ms"] for gap in gaps), min(answers), max(answers))


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The place where two answers part, None when they are equal as far as both go."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)


def differing(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of places in which two answers differ."""
    return sum(a != b for a, b in zip(one, other, strict=False))
