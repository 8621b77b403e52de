"""The rows as a table, with ratios to the peer and whether targets are met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.comparison.comparison_tables import table
from benchmarks.gpu_parts.plan import COMPILED, EAGER, PEER, SPEED
from benchmarks.gpu_parts.rows import Row
from benchmarks.gpu_parts.timed import COMPILED as FIRST_COMPILED
from benchmarks.gpu_parts.timed import FIRST, TOKEN

HEADER = ("part", "system", "measure", "value", "target", "beside, or why not")
TARGETS = {EAGER: ">= 10", COMPILED: ">= 2"}  # times the peer's speed on a GPU, for each token
KEPT = 160  # characters of a note


def printed(rows: Sequence[Row], targets: Mapping[str, str]) -> str:
    """The table of everything, and that of the ratios, with ``targets`` by kind of peer."""
    told = [line(row) for row in rows if row.get("key") not in ("time", "available")]
    compared = ratios(rows, targets)
    parts = [table(HEADER, told), table(RATIO_HEADER, compared) if compared else ""]
    return "\n\n".join(part for part in parts if part)


def line(row: Row) -> tuple[str, ...]:
    """One row of `HEADER`."""
    place = (row["part"], row["system"])
    for ending in ("skipped", "error"):
        if ending in row:
            return (*place, ending.upper() if ending == "error" else ending, "", "", cut(row[ending]))
    value = f"{row['value']:.4g}" if isinstance(row["value"], float) else str(row["value"])
    beside = "; ".join(str(row[name]) for name in ("reference", "note") if name in row)
    target = judged(row.get("target"), row["value"])
    return (*place, row["measure"], f"{value} {row['unit']}".strip(), target, cut(beside))


def judged(target: str | None, value: Any) -> str:
    """``>= 0.7: met``, or ``missed``; nothing without a target."""
    if target is None:
        return ""
    sign, bound = target.split()
    met = value >= float(bound) if sign == ">=" else value <= float(bound)
    return f"{target}: {'met' if met else 'MISSED'}"


def cut(text: str) -> str:
    flat = " ".join(str(text).split()).replace("|", "/")
    return flat if len(flat) <= KEPT else f"{flat[: KEPT - 1]}…"


RATIO_HEADER = (
    "times as fast as", "system", "each token", "first token, one picture", "shots before it", "shots compiled",
)


def ratios(rows: Sequence[Row], targets: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Our systems against each of the peers, as README's table has it: the peer's time over ours; compiled shots
    against the peer's, which it has to read."""
    found = []
    for peer in named(rows, PEER):
        kind = COMPILED if peer.endswith(COMPILED) else EAGER
        # A stand-in is not what the targets are about.
        target = targets.get(kind) if peer.startswith("open_flamingo") else None
        for system in named(rows, SPEED):
            cells = []
            for key, theirs, many, aim in (
                (TOKEN, TOKEN, False, target), (FIRST, FIRST, False, None), (FIRST, FIRST, True, None),
                (FIRST_COMPILED, FIRST, True, None),
            ):
                ours, other = value_of(rows, system, key, many), value_of(rows, peer, theirs, many)
                ratio = other / ours if ours and other else None
                cells.append("" if ratio is None else f"{ratio:.2f}" + (f" ({judged(aim, ratio)})" if aim else ""))
            found.append((peer, system, *cells))
    return found


def named(rows: Sequence[Row], part: str) -> list[str]:
    """The systems of a part that told a time, in order."""
    told = [row["system"] for row in rows if row["part"] == part and row.get("key") in (FIRST, TOKEN)]
    return list(dict.fromkeys(told))


def value_of(rows: Sequence[Row], system: str, key: str, many: bool) -> float | None:
    """The value of a row of a system, without or with shots."""
    return next((row["value"] for row in rows
                 if row["system"] == system and row.get("key") == key and bool(row["shots"]) == many), None)
