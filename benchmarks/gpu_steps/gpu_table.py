"""The outcomes as one table: a row for each system, ours and the peers; below it what is wanted, and what failed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.comparison.comparison_tables import table

TOKEN, FIRST, COMPILED = "each token", "first token", ", compiled"
SHARE = 0.7  # wanted of the ceiling, for each token
TIMES = {"open_flamingo, fp16, eager": 10.0, "open_flamingo, fp16, compiled": 2.0}  # wanted of its speed, likewise
Figures = dict[str, tuple[float, float | None]]  # milliseconds, and the share of the ceiling where there is one
Outcome = Mapping[str, Any]


def printed(outcomes: Sequence[Outcome], judged: bool) -> str:
    """The table; where it is ``judged``, whether what is wanted was reached; and why something is missing."""
    measured = {each["system"]: found for each in outcomes if (found := figures(each["records"]))}
    peers = [each["system"] for each in outcomes if each["step"] == "peer" and each["system"] in measured]
    base = measured[peers[0]] if peers else {}
    rows: dict[str, dict[str, str]] = {}
    for each in outcomes:
        if each["system"] and each["step"] != "backend":  # doctor and the prompts are of no system
            rows.setdefault(each["system"], {}).update(cells(each, base))
    names = dict.fromkeys(name for row in rows.values() for name in row)
    lines = [(system, *(row.get(name, "") for name in names)) for system, row in rows.items()]
    parts = [table(("system", *names), lines)]
    if peers:
        parts.append(f"Percent: of the ceiling that bench measured. In parentheses: times as fast as {peers[0]}.")
    parts += verdicts(measured, peers) if judged else []
    parts += [f"{each['step']}, {each['system']}: {why}" for each in outcomes
              if (why := each.get("error") or each.get("skipped"))]
    return "\n\n".join(parts)


def cells(outcome: Outcome, base: Figures) -> dict[str, str]:
    """The columns that a step fills in its system's row. ``base`` are times of the peer that all are compared with: it
    cannot compile shots, it has to read them."""
    step, ended = outcome["step"], "ERROR" if "error" in outcome else "skipped"
    found = {step: ended if {"error", "skipped"} & set(outcome) else f"{outcome['seconds']:.4g} s"}
    for record in outcome["records"]:
        if "graphs" in record:
            found[step] = verified(record)
        elif "bytes" in record:
            size = record["bytes"]
            found[step] += f", {(sum(size.values()) if isinstance(size, dict) else size) / 1e9:.3g} GB"
        elif "rates" in record:
            found["memory"] = f"{record['rates']['bandwidth'] / 1e9:.4g} GB/s"
    for name, (milliseconds, share) in figures(outcome["records"]).items():
        theirs = base.get(name.removesuffix(COMPILED))
        found[name] = (f"{milliseconds:.4g} ms" + ("" if share is None else f", {share:.0%}")
                       + (f" ({theirs[0] / milliseconds:.3g})" if theirs else ""))
    return {name: text.replace("|", "/") for name, text in found.items()}


def figures(records: Sequence[Outcome]) -> Figures:
    """Everything that ``bench`` or a peer measured, tokens at the shortest context first."""
    found: Figures = {}
    for record in records:
        for decode in sorted(record.get("decode", ()), key=lambda decode: decode["context"]):
            name = f"{TOKEN}, context {decode['context']}" if TOKEN in found else TOKEN
            found[name] = decode["milliseconds"]["median"], decode["against"]["reached"]
        for shots in record.get("shots", ()):
            name = f"{FIRST}, {shots['shots']} shots"
            found[name] = shots["cold"]["median"], None
            if shots["compiled"]:
                found[name + COMPILED] = shots["compiled"]["median"], None
        for stage in record.get("stages", ()):
            name = stage["name"] + (f", {stage['tokens']} tokens" if stage["tokens"] else "")
            found[name] = stage["milliseconds"]["median"], stage["against"] and stage["against"]["reached"]
        if "case" in record:
            case = record["case"]
            gaps = [gap for answer in case["token_ms"] for gap in answer]
            found.setdefault(TOKEN, (statistics.median(gaps), None))  # the first case is without shots
            found[f"{FIRST}, {case['shots']} shots"] = statistics.median(case["first_token_ms"]), None
    return found


def verified(record: Outcome) -> str:
    """The result of ``verify`` in a cell: tokens, each graph's deviation beside its tolerance, and where they part."""
    tokens, said = record["tokens"], "met" if record["passed"] else "MISSED"
    parts = [f"{said}: {tokens['equal']} of {tokens['compared']} tokens"]
    parts += [f"{each['where']}: token {each['position'] + 1}" for each in record["differences"]]
    for name, graph in record["graphs"].items():
        deviation = "no number" if graph["deviation"] is None else f"{graph['deviation']:.1e}"
        where = "" if graph["accepted"] else f" at {graph['where']}"
        parts.append(f"{name} {deviation} of {graph['tolerance']:.1e}{where}" if graph["where"] else f"{name} not run")
    return "; ".join(parts)


def verdicts(measured: Mapping[str, Figures], peers: Sequence[str]) -> Iterator[str]:
    """A line for each of our systems and peer: how each token compares, and whether that is what is wanted."""
    for system in [system for system, found in measured.items() if system not in peers and TOKEN in found]:
        milliseconds, share = measured[system][TOKEN]
        yield f"{system}: each token at {share or 0.0:.0%} of the ceiling{wanted(share or 0.0, SHARE)}"
        for peer in peers:
            times = measured[peer][TOKEN][0] / milliseconds
            yield f"{system}: each token {times:.3g} times as fast as {peer}{wanted(times, TIMES.get(peer))}"


def wanted(value: float, least: float | None) -> str:
    """Words on whether a value is as large as is wanted; none where nothing is."""
    return "" if least is None else f" (wanted {least:g}: {'met' if value >= least else 'MISSED'})"
