"""Made-up commands, outcomes and answers of ``flamingo-rt doctor``, for the tests of ``benchmarks.gpu_run``."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.gpu_steps import gpu_session
from benchmarks.processes import Finished


def works(*lowerings: str) -> dict[str, Any]:
    return {"works": True, "detail": "it runs", "lowerings": list(lowerings)}


def fails(why: str) -> dict[str, Any]:
    return {"works": False, "detail": why}


DOCTOR = {
    "backends": {"torch": works(), "ort-cuda": works("ort", "tensorrt"), "ort-tensorrt-rtx": fails("no plugin"),
                 "tensorrt": works()},
    "builders": {"tensorrt": works("tensorrt", "tensorrt-classic"), "tensorrt-rtx": fails("no library")},
}
NO_GPU = {
    "backends": dict.fromkeys(("torch", "ort-cuda", "ort-tensorrt-rtx", "tensorrt"), fails("no GPU")),
    "builders": DOCTOR["builders"],
}
WRONG = {
    "passed": False, "tokens": {"equal": 7, "compared": 8}, "differences": [{"where": "a picture", "position": 2}],
    "graphs": {
        "vision_encoder": {"deviation": None, "tolerance": 0.01, "where": "features | clip", "accepted": False},
        "resampler": {"deviation": 0.0, "tolerance": 0.01, "where": None, "accepted": True},
        "language_model": {"deviation": 0.005, "tolerance": 0.01, "where": "logits", "accepted": True},
    },
}
RIGHT: dict[str, Any] = {"passed": True, "tokens": {"equal": 8, "compared": 8}, "differences": [], "graphs": {}}


class Runner:
    """In the place of `run`: a command takes so many seconds of a made-up clock, and prints what is given for it."""

    def __init__(self, seconds: float = 1.0, output: str = "", status: int = 0) -> None:
        self.now, self.commands, self.limits = 0.0, list[tuple[str, ...]](), list[float | None]()
        self._seconds, self._output, self._status = seconds, output, status

    def monotonic(self) -> float:
        return self.now

    def answer(self, command: tuple[str, ...]) -> tuple[int, str]:
        return self._status, self._output

    def __call__(self, command: tuple[str, ...], echo: bool, together: bool, limit: float | None) -> Finished:
        assert echo
        assert together  # what a step fails with is a part of its output
        self.commands.append(command)
        self.limits.append(limit)
        self.now += self._seconds
        status, output = self.answer(command)
        return Finished(command, status, self._seconds, 0, output, None)

    def takes_over(self, monkeypatch: pytest.MonkeyPatch) -> Runner:
        monkeypatch.setattr(gpu_session, "run", self)
        monkeypatch.setattr(gpu_session, "time", self)
        return self


def bench(token: float, reached: float, first: float, cold: float, compiled: float) -> dict[str, Any]:
    def spread(median: float) -> dict[str, float]:
        return {"median": median, "runs": 3}

    return {
        "rates": {"bandwidth": 1.5e12}, "machine": {"gpus": None}, "stages": [],
        "decode": [{"context": context, "milliseconds": spread(token + context), "against": {"reached": reached}}
                   for context in (1500, 0)],
        "shots": [{"shots": 0, "cold": spread(first), "compiled": None},
                  {"shots": 32, "cold": spread(cold), "compiled": spread(compiled)}],
    }


def outcome(step: str, system: str, *records: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"step": step, "system": system, "records": records, "seconds": 9.0, **more}


def peer(system: str, token: float, first: float, behind: float, **more: Any) -> dict[str, Any]:
    cases = [{"case": {"shots": shots, "first_token_ms": [time], "token_ms": [[token, token]]}}
             for shots, time in ((0, first), (32, behind))]
    return outcome("peer", system, {"torch": "2"}, *cases, **more)


def row(told: str, system: str) -> dict[str, str]:
    """A row of the table by its columns."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines() if line.startswith("|")]
    return next(dict(zip(lines[0], line, strict=True)) for line in lines if line[0] == system)
