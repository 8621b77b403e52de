"""Calibration prompts: lines that are no prompts."""

from __future__ import annotations

from ..kind import Case, Seeds
from ..sandbox import Sandbox

FILE = "prompts.jsonl"


def _case(name: str, line: bytes) -> Case:
    def write(sandbox: Sandbox, seeds: Seeds) -> None:
        (sandbox.input / FILE).write_bytes(seeds[FILE] + b"\n" + line)

    return Case(name, write)


CASES = (
    _case("nested a hundred thousand times", b"[" * 100_000), _case("number of 10,000 digits",
                                                                    b"[" + b"9" * 10_000 + b"]"),
    _case("what a terminal obeys", b'[{"\\u001b[2J": "x"}]'), _case("bytes that are not UTF-8", b'["\xff"]'),
    _case("picture that is a number", b'[{"image": 7}]'), _case("an object", b"{}"),
)
