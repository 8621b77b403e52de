"""The outcomes as tables: a line for every figure, with its target, and the ratios to the peers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.comparison.comparison_tables import table
from benchmarks.gpu_steps.gpu_plan import BENCH, BUILD, COMPILED, DOCTOR, EAGER, EXPORT, LOOK, PEER, VERIFY
from benchmarks.gpu_steps.gpu_session import Outcome

HEADER = ("step", "system", "measure", "value", "target", "beside, or why not")
RATIO_HEADER = (
    "times as fast as", "system", "each token", "first token, one picture", "shots before it", "shots compiled",
)
TARGETS = {EAGER: ">= 10", COMPILED: ">= 2"}  # times the peer's speed on a GPU, for each token
SHARE = ">= 0.7"  # of a GPU's bandwidth, while decoding
KEPT = 160  # characters of a note
Line = tuple[str, str, str, str]  # measure, value, target, beside
# Milliseconds: each token, to the first one without shots, behind shots, and behind compiled shots.
TOKEN, FIRST, BEHIND, BEHIND_COMPILED = "token", "first", "behind", "behind compiled"


def printed(outcomes: Sequence[Outcome], targets: Mapping[str, str]) -> str:
    """The table of everything, and the one of the ratios with ``targets`` by kind of peer."""
    told = [(each["step"], each["system"], *line) for each in outcomes for line in lines_of(each)]
    parts = [table(HEADER, told), table(RATIO_HEADER, ratios(outcomes, targets))]
    return "\n\n".join(part for part in parts if part)


def lines_of(outcome: Outcome) -> Iterator[Line]:
    """The lines of one step: its figures, and how it ended where it did not succeed."""
    for record in outcome.get("records", ()):
        yield from LINES.get(outcome["step"], lambda record: iter(()))(record)
    if "skipped" in outcome:
        yield "skipped", "", "", cut(outcome["skipped"])
    elif "error" in outcome:
        yield "ERROR", "", "", cut(outcome["error"])
    else:
        yield "the whole step", f"{outcome['seconds']:.4g} s", "", ""


def _doctor(record: Mapping[str, Any]) -> Iterator[Line]:
    states = {**record["backends"], **record["builders"], "CUDA": record["cuda"]}
    for name, state in states.items():
        yield name, "works" if state["works"] else "does not work", "", cut(state["detail"])


def _written(record: Mapping[str, Any]) -> Iterator[Line]:
    size = record["bytes"]
    yield "bytes", f"{(sum(size.values()) if isinstance(size, dict) else size) / 1e9:.3g} GB", "", ""


def _bench(record: Mapping[str, Any]) -> Iterator[Line]:
    rates, on_gpu = record["rates"], record["model"]["backend"] != "ort"
    for gpu in record["machine"]["gpus"] or ():
        yield "GPU", str(gpu["name"]), "", cut(json.dumps(gpu))
    yield "memory", f"{rates['bandwidth'] / 1e9:.1f} GB/s", "", cut(rates["bandwidth_by"])
    flops = "not measured" if rates["flops"] is None else f"{rates['flops'] / 1e12:.2f} TFLOP/s"
    yield "products", flops, "", cut(rates["flops_by"])
    for decode in record["decode"]:
        name, median = f"decode, context {decode['context']}", decode["milliseconds"]["median"]
        yield name, f"{median:.4g} ms", "", f"{decode['milliseconds']['runs']} greedy steps"
        share = decode["against"]["bytes"] / median * 1e3 / rates["bandwidth"]
        yield f"{name}, share of the bandwidth", f"{share:.3f}", judged(SHARE if on_gpu else None, share), ""
    for stage in record["stages"]:
        against = stage["against"]
        beside = f"{against['reached']:.2f} of the ceiling, bound by {against['bound']}" if against else ""
        name = stage["name"] + (f", {stage['tokens']} tokens" if stage["tokens"] else "")
        yield name, f"{stage['milliseconds']['median']:.4g} ms", "", beside
    for shots in record["shots"]:
        compiled = shots["compiled"]
        beside = f"compiled {compiled['median']:.4g} ms" if compiled else ""
        yield f"first token, {shots['shots']} shots", f"{shots['cold']['median']:.4g} ms", "", beside
    if record["compiled_ratio"] is not None:
        yield "shots compiled cost, of what none cost", f"{record['compiled_ratio']:.3f} times", "", ""


def _verify(record: Mapping[str, Any]) -> Iterator[Line]:
    for name, found in record["graphs"].items():
        where = cut(f"tolerance {found['tolerance']:.1e}; {found['where']}")
        deviation = "not a number" if found["deviation"] is None else f"{found['deviation']:.1e}"
        yield f"{name}, deviation", deviation, "met" if found["accepted"] else "MISSED", where
    tokens = record["tokens"]
    parted = "; ".join(f"{each['where']}: token {each['position'] + 1}" for each in record["differences"])
    told = f"{tokens['equal']} of {tokens['compared']}"
    yield "greedy tokens as the reference", told, "met" if record["passed"] else "MISSED", cut(parted)


def _peer(record: Mapping[str, Any]) -> Iterator[Line]:
    if "case" in record:
        case = record["case"]
        for name, value in case_times(case).items():
            yield f"{name}, {case['shots']} shots", f"{value:.4g} ms", "", f"{case['prompt_tokens']} tokens"
    elif "skipped" not in record:
        yield "about", "see beside", "", cut(json.dumps(record))


LINES = {DOCTOR: _doctor, EXPORT: _written, BUILD: _written, BENCH: _bench, VERIFY: _verify, LOOK: _peer, PEER: _peer}


def judged(target: str | None, value: float) -> str:
    """A target with ``met`` or ``MISSED``; empty without one."""
    if target is None:
        return ""
    sign, bound = target.split()
    met = value >= float(bound) if sign == ">=" else value <= float(bound)
    return f"{target}: {'met' if met else 'MISSED'}"


def cut(text: str) -> str:
    """One line for a cell of a table, shortened."""
    flat = " ".join(str(text).split()).replace("|", "/")
    return flat if len(flat) <= KEPT else f"{flat[: KEPT - 1]}…"


def case_times(case: Mapping[str, Any]) -> dict[str, float]:
    """Medians of a peer's case in milliseconds: to the first token, and from token to token."""
    gaps = [gap for answer in case["token_ms"] for gap in answer]
    return {FIRST: statistics.median(case["first_token_ms"]), TOKEN: statistics.median(gaps)}


def bench_times(record: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds of ``flamingo-rt bench`` that have a counterpart: decoding at the shortest context, first tokens."""
    shortest = min(record["decode"], key=lambda decode: decode["context"])
    found = {TOKEN: shortest["milliseconds"]["median"]}
    for shots in record["shots"]:
        found[BEHIND if shots["shots"] else FIRST] = shots["cold"]["median"]
        if shots["compiled"]:
            found[BEHIND_COMPILED] = shots["compiled"]["median"]
    return found


def peer_times(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Milliseconds of a peer. It cannot compile shots: it has to read them."""
    found: dict[str, float] = {}
    for record in records:
        if "case" not in record:
            continue
        times = case_times(record["case"])
        if record["case"]["shots"]:
            found |= {BEHIND: times[FIRST], BEHIND_COMPILED: times[FIRST]}
        else:
            found |= times
    return found


def ratios(outcomes: Sequence[Outcome], targets: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Each system against each peer: the peer's time over ours. Only open_flamingo has targets.

    Ours reads JPEG files of 640x480 pixels for the first token, the peer PNG files in the encoder's size.
    """
    peers = {each["system"]: peer_times(each["records"]) for each in outcomes
             if each["step"] == PEER and each.get("records")}
    ours = {each["system"]: bench_times(each["records"][-1]) for each in outcomes
            if each["step"] == BENCH and each.get("records")}
    found = []
    for peer, theirs in peers.items():
        kind = COMPILED if peer.endswith(COMPILED) else EAGER
        target = targets.get(kind) if peer.startswith("open_flamingo") else None
        for system, times in ours.items():
            cells = []
            for name in (TOKEN, FIRST, BEHIND, BEHIND_COMPILED):
                ratio = theirs[name] / times[name] if name in theirs and name in times else None
                aim = f" ({judged(target, ratio)})" if ratio is not None and target and name == TOKEN else ""
                cells.append("" if ratio is None else f"{ratio:.2f}{aim}")
            found.append((peer, system, *cells))
    return found
