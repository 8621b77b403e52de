"""Repeated measurements, with a clock that is not the machine's."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from flamingo_rt.bench.statistics import Spread, sample


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], Spread(3.0, 3.0, 3.0, 3.0, 3.0, 1)),
        ([1.0, 2.0], Spread(1.5, 1.25, 1.75, 1.0, 2.0, 2)),
        ([5.0, 1.0, 2.0, 3.0, 4.0], Spread(3.0, 2.0, 4.0, 1.0, 5.0, 5)),
        ([1.0, 1.0, 1.0, 100.0], Spread(1.0, 1.0, 25.75, 1.0, 100.0, 4)),
    ],
)
def test_a_spread_is_median_quartiles_and_extremes(values: list[float], expected: Spread) -> None:
    assert Spread.of(values) == expected


def recorded(calls: list[str], name: str, clock: FakeClock, seconds: float):
    def run() -> dict[str, float]:
        clock.now += seconds
        calls.append(name)
        return {"time": float(len(calls))}

    return run


def test_rounds_alternate_and_warm_up_is_dropped() -> None:
    clock, calls, between = FakeClock(), [], []
    found = sample(
        {name: recorded(calls, name, clock, 1.0) for name in "ab"}, 2, 1, 1000.0, clock=clock,
        between=lambda: between.append(len(calls)),
    )
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": {"time": [4.0, 5.0]}, "b": {"time": [3.0, 6.0]}}
    assert between == [2, 4, 6]


def test_measuring_ends_when_its_time_is_over_but_never_before_one_run() -> None:
    clock, calls = FakeClock(), []
    runs = {name: recorded(calls, name, clock, 10.0) for name in "ab"}
    assert len(sample(runs, 5, 1, 25.0, clock=clock)["a"]["time"]) == 3  # 60 seconds of 2 * 25
    assert len(sample(runs, 5, 1, 1.0, clock=clock)["a"]["time"]) == 1


def test_a_run_may_give_several_values_and_names() -> None:
    found = sample({"a": lambda: {"steps": [1.0, 2.0], "all": 3.0}}, 2, 0, 10.0, clock=FakeClock())
    assert found == {"a": {"steps": [1.0, 2.0, 1.0, 2.0], "all": [3.0, 3.0]}}


def test_progress_is_advanced_by_every_run() -> None:
    told = []

    @contextmanager
    def progress(stage, total):
        told.append((stage, total))
        yield told.append

    sample({"a": dict, "b": dict}, 2, 1, 10.0, clock=FakeClock(), progress=progress, stage="s")
    assert told == [("s", 6), *[1] * 6]
