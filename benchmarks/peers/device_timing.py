"""Options and output of the systems that run in PyTorch on a device: open_flamingo, and our own model.

Each prints a JSON line for every case as soon as it is measured, so that a run that is ended early keeps the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.answer_timing import Answer, Plan, emit, measure_case, read_workload, wanted_cases


def device_options(description: str) -> argparse.ArgumentParser:
    """Options for the device, the type, torch.compile, and the number and length of the runs."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--work", type=Path, required=True, help="the folder of gpu_run, which holds the prompts")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=["fp32", "fp16", "bf16"], default="fp16")
    parser.add_argument("--compile", metavar="BACKEND", help="for torch.compile, such as inductor; default: eager")
    parser.add_argument("--shots", type=lambda text: tuple(map(int, text.split(","))), default=(0, 32))
    parser.add_argument("--tokens", type=int, default=32, help="tokens of an answer; default %(default)s")
    parser.add_argument("--runs", type=int, default=3, help="runs of a case after one to warm up; default %(default)s")
    parser.add_argument("--seconds", type=float, default=10.0, help="begin no further run of a case after this")
    return parser


def plan_of_device(options: argparse.Namespace, threads: int) -> Plan:
    """The plan of the options: no beams, no captions."""
    return Plan(threads, options.tokens, options.runs, options.seconds, options.shots, beams=0, beam_tokens=1)


def wanted(options: argparse.Namespace, plan: Plan) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The prompts' description, and the cases that ``plan`` asks for."""
    workload = read_workload(options.work / "workload" / "workload.json")
    return workload, wanted_cases(workload, plan)


def emit_cases(cases: list[dict[str, Any]], ask: Callable[[dict[str, Any], int], Answer], plan: Plan) -> None:
    """Measure each case and print it as ``{"case": …}``; ``ask`` answers a case with a number of tokens."""
    for case in cases:
        emit({"case": measure_case(case, lambda tokens, case=case: ask(case, tokens), plan)})
