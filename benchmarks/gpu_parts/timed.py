"""The rows of a timed case, the same of every system: ours, the peer, and what stands in for it."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.rows import tell
from benchmarks.peers.answer_timing import Plan

FIRST, TOKEN, COMPILED = "first_token", "token", "first_token_compiled"


def tell_case(record: dict[str, Any], compiled: bool = False) -> None:
    """Time to the first token, and from token to token, of a record of `measuring.measure_case`."""
    shots, firsts = record["shots"], record["first_token_ms"]
    gaps = [gap for answer in record["token_ms"] for gap in answer]
    shown = f"{shots} shot{'s' if shots > 1 else ''}" if shots else "one picture"
    behind = f"{shown} compiled" if compiled else shown
    tell(f"first token, {behind}", round(statistics.median(firsts), 3), "ms", key=COMPILED if compiled else FIRST,
         shots=shots, samples=firsts, prompt_tokens=record["prompt_tokens"])
    if not compiled:  # behind a compiled prompt it is the same
        tell(f"each token, {behind}", round(statistics.median(gaps), 4), "ms", key=TOKEN, shots=shots,
             samples=record["token_ms"])


def torch_options(description: str) -> argparse.ArgumentParser:
    """What every system of PyTorch's is asked: where, in which type, compiled or not, and for how long."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=["fp32", "fp16", "bf16"], default="fp16")
    parser.add_argument("--compile", metavar="BACKEND", help="of torch.compile, such as inductor")
    parser.add_argument("--shots", type=lambda text: tuple(map(int, text.split(","))), default=(0, 32))
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    return parser


def plan_for(shots: tuple[int, ...], tokens: int, repeats: int, budget: float, threads: int) -> Plan:
    """No beams, no captions: what a few minutes allow."""
    return Plan(threads, tokens, repeats, budget, shots, 0, 1)
