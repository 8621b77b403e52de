"""Repeated measurements and their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from flamingo_rt.progress import Progress, silent

Clock = Callable[[], float]
# One run of a measurement: milliseconds under one or more names.
Run = Callable[[], Mapping[str, float | list[float]]]
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Spread:
    """Milliseconds: median, quartiles, fastest and slowest of ``runs``."""

    median: float
    lower: float
    upper: float
    least: float
    most: float
    runs: int

    @classmethod
    def of(cls, milliseconds: list[float]) -> Spread:
        """The spread of one or more measurements."""
        low, middle, high = (
            statistics.quantiles(milliseconds, n=4, method="inclusive") if len(milliseconds) > 1 else milliseconds * 3
        )
        return cls(middle, low, high, min(milliseconds), max(milliseconds), len(milliseconds))


def sample(
    measurements: Mapping[Name, Run], runs: int, warmup: int, seconds: float, *, clock: Clock = time.perf_counter,
    between: Callable[[], None] = lambda: None, progress: Progress = silent, stage: str = "",
) -> dict[Name, dict[str, list[float]]]:
    """Run every measurement in turn, ``warmup`` rounds that do not count and then ``runs``, every other round from the
    last to the first: what drifts on the machine drifts for all of them. Ends after a round once ``seconds`` for each
    measurement have gone by. ``between`` is called after every round.

    Returns milliseconds by measurement and by the names that it gave.
    """
    found: dict[Name, dict[str, list[float]]] = {name: {} for name in measurements}
    with progress(stage, (warmup + runs) * len(measurements)) as advance:
        start = clock()
        for round_ in range(warmup + runs):
            if round_ == warmup:
                start = clock()
            for name in list(measurements)[:: -1 if round_ % 2 else 1]:
                for key, value in measurements[name]().items():
                    if round_ >= warmup:
                        found[name].setdefault(key, []).extend(value if isinstance(value, list) else [value])
                advance(1)
            between()
            if round_ >= warmup and clock() - start > seconds * len(measurements):
                break
    return found
