"""Results of `measure`: frozen, typed, and ready for JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from flamingo_rt.bench.machine import Machine, Memory
from flamingo_rt.bench.rates import Rates
from flamingo_rt.bench.statistics import Spread


@dataclass(frozen=True)
class ModelFacts:
    """The measured model. ``dtype``, ``quantization`` and ``weight_bytes`` are by graph; ``identity`` is the SHA-256 of
    a bundle's manifest, None for a checkpoint; ``bytes`` is the size of the folder."""

    name: str
    identity: str | None
    folder: str | None
    backend: str
    threads: int | None
    dtype: dict[str, str]
    quantization: dict[str, str | None]
    weight_bytes: dict[str, int]
    bytes: int | None


@dataclass(frozen=True)
class Against:
    """A stage beside what the machine allows: ``flops`` to compute and ``bytes`` to move at least, the milliseconds
    those take at the measured rates (``ceiling``, the larger of the two, ``bound`` by which; memory's alone where
    products could not be measured), and the fraction of that speed that was ``reached``. ``flop_rate`` is what was
    attained, per second, and ``intensity`` FLOPs per byte."""

    flops: int
    bytes: int
    ceiling: float
    bound: Literal["memory", "compute"]
    reached: float
    flop_rate: float
    intensity: float

    @classmethod
    def of(cls, flops: int, bytes_: int, milliseconds: float, rates: Rates) -> Against:
        """Compare a stage that took ``milliseconds``."""
        milliseconds = max(milliseconds, 1e-6)  # a clock that stood still
        compute = flops / rates.flops * 1e3 if rates.flops is not None else 0.0
        memory = bytes_ / rates.bandwidth * 1e3
        ceiling = max(compute, memory)
        return cls(
            flops, bytes_, ceiling, "compute" if compute > memory else "memory", ceiling / milliseconds,
            flops / milliseconds * 1e3, flops / bytes_,
        )


StageName = Literal["images", "vision", "resampler", "prefill"]


@dataclass(frozen=True)
class Stage:
    """One stage of a query with one picture; ``tokens`` are those of a prefill. ``images`` has nothing to compare with:
    reading and resizing a picture is not a matrix product."""

    name: StageName
    tokens: int | None
    milliseconds: Spread
    against: Against | None


@dataclass(frozen=True)
class DecodeResult:
    """One-token steps of ``batch`` rows with ``context`` tokens in each row's cache; milliseconds of one greedy
    step, the choice of its tokens included. ``tokens_per_second`` counts the tokens of all rows."""

    batch: int
    context: int
    milliseconds: Spread
    tokens_per_second: float
    against: Against


@dataclass(frozen=True)
class ShotsResult:
    """Time to the first token of a query after ``shots`` examples: ``cold`` with every picture encoded and the prompt
    prefilled, ``compiled`` with the examples read before (None for 0 shots: there is nothing to read), which took
    ``compiling`` milliseconds, once."""

    shots: int
    prompt_tokens: int
    cold: Spread
    compiled: Spread | None
    compiling: float | None


@dataclass(frozen=True)
class Report:
    """Everything that was measured, on what, and when (UTC, ISO 8601). ``compiled_ratio``: time to the first token with
    the most shots compiled over that with none, the median of the rounds; None when there were no shots."""

    started: str
    finished: str
    machine: Machine
    model: ModelFacts
    options: dict[str, Any]
    rates: Rates
    stages: tuple[Stage, ...]
    decode: tuple[DecodeResult, ...]
    shots: tuple[ShotsResult, ...]
    compiled_ratio: float | None
    memory: Memory
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"benchmark": "flamingo-rt bench", **dataclasses.asdict(self)}

    def stage(self, name: str) -> Stage:
        """The first stage called ``name``."""
        return next(stage for stage in self.stages if stage.name == name)
