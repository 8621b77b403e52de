"""Answers, records and a tokenizer for tests of the comparison with peers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks import random_sources
from benchmarks.peers.answer_timing import Answer, Plan
from flamingo_rt.importing.openflamingo_tokenizer import read_tokenizer

PLAN = Plan(threads=2, tokens=4, repeats=3, budget=60.0, shots=None, beams=3, beam_tokens=5)
MACHINE = {"cpu": "A CPU", "cores": 2, "memory_bytes": 2**34}


def answer(*milliseconds: float) -> Answer:
    """An answer whose tokens came after these milliseconds, one after the other."""
    return Answer(tuple(range(len(milliseconds))), tuple(np.cumsum(milliseconds) / 1e3))


def case(shots: int, first: float, gap: float, tokens: list[int] | None = None) -> dict:
    return {"shots": shots, "pictures": shots + 1, "prompt_tokens": 31, "first_token_ms": [first, first + 2, first + 1],
            "token_ms": [[gap] * 3] * 3, "tokens": tokens or [1, 2, 3, 4]}


def record(*cases: dict, **more: object) -> dict:
    return {"threads": 2, "versions": {"torch": "1"}, "token_bytes": 10**9, "peak_running_bytes": 2 * 10**9,
            "cases": list(cases), "beams": None, "bandwidth": [3e10, 2e10], **more}


def compared(**runs: dict) -> dict:
    named = {name.replace("_", "-"): run for name, run in runs.items()}
    return {"format": 1, "date": "2026-01-02", "preset": "openflamingo-3b", "machine": MACHINE, "builds": {},
            "runs": named}


def large_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of the comparison's large models, as it is read from the files that are written to ``folder``."""
    folder.mkdir()
    random_sources.write_tokenizer(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    return read_tokenizer(folder, None)[0]
