"""Measurements of answers, the same for peers and for ours, so that the numbers mean the same.

Imported by ``benchmarks/ours.py`` and by the peers' scripts, each in its own environment: the standard library alone.
A script gives this module a function that answers one case of the workload (see `comparison/workload_folder.py`) and
gets back raw samples. Its last line of output is a JSON object, see `emit`.

    first token   from the call, with names of picture files and token ids (our side: texts), to the first chosen one
    per token     from one chosen token to the next
    peak          largest resident memory, mapped files included: of the whole run, and after loading

Captions (`comparison/captions.py`) are answers that are given: the model computes everything as ever, then the next
token of the caption is made the likeliest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

WARM_UP_TOKENS = 3
WORKLOAD, CAPTIONS = "workload", "captions"  # folders in the work folder
FORCED = 1e4  # the logit of a given token, above any other


@dataclass(frozen=True)
class Answer:
    """One timed answer. ``times``: seconds from the call to each token, one for each of ``tokens``."""

    tokens: tuple[int, ...]
    times: tuple[float, ...]

    @property
    def first_ms(self) -> float:
        return self.times[0] * 1e3

    @property
    def gaps_ms(self) -> list[float]:
        """Time between neighbouring tokens, milliseconds."""
        return [(later - earlier) * 1e3 for earlier, later in zip(self.times, self.times[1:], strict=False)]


@dataclass(frozen=True)
class Plan:
    """Number and length of the measurements. ``budget`` bounds the repetitions of one case, in seconds; one is always
    made. All captions with the same number of shots count as one case; there are ``queries`` of them for each of
    ``caption_shots``."""

    threads: int
    tokens: int
    repeats: int
    budget: float
    shots: tuple[int, ...] | None
    beams: int
    beam_tokens: int
    queries: int = 8
    caption_shots: tuple[int, ...] = (4,)

    def __post_init__(self) -> None:
        for name, least in (("threads", 1), ("tokens", 2), ("repeats", 1), ("beams", 0), ("beam_tokens", 1),
                            ("queries", 1)):
            if getattr(self, name) < least:
                sys.exit(f"--{name.replace('_', '-')} is {getattr(self, name)}: give {least} or more")


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """The options that every measuring script and the comparison itself have."""
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="cores; default: all (%(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of an answer; default %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="answers to each case, after one to warm up; default 5")
    parser.add_argument("--budget", type=float, default=120.0,
                        help="seconds after which a case is not repeated any more; default %(default)s")
    parser.add_argument("--shots", type=_numbers, help="cases to measure, such as 0,4,8; default: all of the workload")
    parser.add_argument("--beams", type=int, default=3, help="beams to compare with greedy; 0: don't; default 3")
    parser.add_argument("--beam-tokens", type=int, default=20, help="tokens of those answers; default %(default)s")
    parser.add_argument("--queries", type=int, default=8, help="captions for each number of shots; default %(default)s")
    parser.add_argument("--caption-shots", type=_numbers, default=(4,), help="shots of the captions, of 4,8; default 4")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def plan_of(options: argparse.Namespace) -> Plan:
    return Plan(options.threads, options.tokens, options.repeats, options.budget, options.shots, options.beams,
                options.beam_tokens, options.queries, options.caption_shots)


def read_workload(path: Path) -> dict[str, Any]:
    """The workload's description, with pictures as paths. Ends the program with what to do when there is none."""
    if not path.is_file():
        sys.exit(f"there is no workload at {path}: benchmarks/compare.py writes one into its work folder")
    workload = json.loads(path.read_text(encoding="utf-8"))
    workload["pictures"] = [str(path.parent / name) for name in workload["pictures"]]
    workload["pixels"] = str(path.parent / workload["pixels"])
    return workload


def wanted_cases(workload: dict[str, Any], plan: Plan) -> list[dict[str, Any]]:
    """The workload's cases with the numbers of shots that are asked for; ends the program for one that is not there."""
    _check_shots("--shots", plan.shots or (), workload)
    return [case for case in workload["cases"] if plan.shots is None or case["shots"] in plan.shots]


def wanted_captions(workload: dict[str, Any], plan: Plan) -> list[dict[str, Any]]:
    """The captions that are asked for; ends the program for a number of shots that is not there."""
    _check_shots("--caption-shots", plan.caption_shots, workload)
    return [case for case in workload["cases"] if case["shots"] in plan.caption_shots and case["query"] < plan.queries]


def _check_shots(option: str, wanted: Sequence[int], workload: dict[str, Any]) -> None:
    there = sorted({case["shots"] for case in workload["cases"]})
    for number in wanted:
        if number not in there:
            sys.exit(f"{option} {number} is not in the workload, which has {', '.join(map(str, there))}")


def measure_case(case: dict[str, Any], ask: Callable[[int], Answer], plan: Plan) -> dict[str, Any]:
    """Raw samples of one case; ``ask`` answers it with the given number of tokens."""
    ask(min(WARM_UP_TOKENS, plan.tokens))
    answers = repeated(lambda: ask(plan.tokens), plan)
    if len({answer.tokens for answer in answers}) > 1:
        print(f"note: {case['shots']} shots: the answers of repeated calls differ")
    if len(answers[0].tokens) != plan.tokens:
        sys.exit(f"{case['shots']} shots: {len(answers[0].tokens)} tokens came back, {plan.tokens} were asked for")
    record = {
        "shots": case["shots"], "pictures": len(case["pictures"]), "prompt_tokens": len(case["input_ids"]),
        "first_token_ms": [round(answer.first_ms, 3) for answer in answers],
        "token_ms": [[round(gap, 3) for gap in answer.gaps_ms] for answer in answers],
        "tokens": list(answers[0].tokens),
    }
    gaps = shown([gap for answer in answers for gap in answer.gaps_ms])
    print(f"{case['shots']:>3} shots, {record['prompt_tokens']} tokens: first token "
          f"{shown(record['first_token_ms'])}, then {gaps} a token", flush=True)
    return record


def measure_caption(case: dict[str, Any], ways: Mapping[str, Callable[[], Answer]], plan: Plan) -> dict[str, Any]:
    """Raw samples of a caption, decoded in turns in each of ``ways``, by the way's name."""
    samples: dict[str, list[Answer]] = {way: [] for way in ways}

    def turn() -> None:
        for way, ask in ways.items():
            samples[way].append(ask())

    repeated(turn, replace(plan, budget=plan.budget / plan.queries))
    record: dict[str, Any] = {
        "shots": case["shots"], "query": case["query"], "pictures": len(case["pictures"]),
        "prompt_tokens": len(case["input_ids"]), "tokens": len(case["answer"]),
    }
    for way, answers in samples.items():
        record[way] = {
            "first_token_ms": [round(answer.first_ms, 3) for answer in answers],
            "decode_ms": [round(sum(answer.gaps_ms), 3) for answer in answers],
            "tokens_equal": all(list(answer.tokens) == case["answer"] for answer in answers),
        }
    told = ", ".join(f"{way} {shown(record[way]['decode_ms'])}" for way in ways)
    print(f"{case['shots']:>3} shots, caption {case['query']}, {record['tokens']} tokens: {told}", flush=True)
    return record


def measure_beams(greedy: Callable[[int], Any], beams: Callable[[int], Any], plan: Plan) -> dict[str, Any]:
    """Whole answers of equal length, greedy and with beams, in milliseconds from call to end."""
    samples: dict[str, list[float]] = {}
    for name, ask in (("greedy_ms", greedy), ("beam_ms", beams)):
        ask(WARM_UP_TOKENS)
        samples[name] = repeated(lambda ask=ask: _elapsed_ms(ask, plan.beam_tokens), plan)
    ratio = statistics.median(samples["beam_ms"]) / statistics.median(samples["greedy_ms"])
    print(f"{plan.beams} beams, {plan.beam_tokens} tokens: {shown(samples['beam_ms'])}, {ratio:.2f} times greedy")
    return {"beams": plan.beams, "tokens": plan.beam_tokens, **samples}


def repeated(ask: Callable[[], Any], plan: Plan) -> list[Any]:
    """Results of ``plan.repeats`` calls, fewer when they take longer than ``plan.budget`` seconds."""
    start, results = time.perf_counter(), []
    while not results or (len(results) < plan.repeats and time.perf_counter() - start < plan.budget):
        results.append(ask())
    return results


def _elapsed_ms(ask: Callable[[int], Any], tokens: int) -> float:
    start = time.perf_counter()
    ask(tokens)
    return round((time.perf_counter() - start) * 1e3, 6)


def shown(milliseconds: Sequence[float]) -> str:
    """Median, fastest and slowest, for people."""
    middle, low, high = statistics.median(milliseconds), min(milliseconds), max(milliseconds)
    return f"{middle:.1f} ms ({low:.1f} to {high:.1f})"


def forget_peak() -> None:
    """Start counting the largest resident memory anew, where the kernel allows it (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("note: the kernel does not count the peak memory anew; peak_running_bytes includes loading")


def peak_bytes() -> int:
    """Largest resident memory of this process, mapped files included.

    ``ru_maxrss`` alone would include what the parent had when it started this process.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def about(plan: Plan, **more: Any) -> dict[str, Any]:
    """The part of a record about the run, besides its samples."""
    return {
        "threads": plan.threads, "new_tokens": plan.tokens, "repeats": plan.repeats, "budget_s": plan.budget,
        "python": platform.python_version(), **more,
    }


def emit(record: dict[str, Any]) -> None:
    """Print the record as the last line."""
    print(json.dumps(record), flush=True)
