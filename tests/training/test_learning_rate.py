"""The learning rate of each step: warm-up, then the schedule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flamingo_rt.training.options import RunOptions


def test_the_learning_rate_rises_linearly_and_falls_as_the_schedule_says() -> None:
    options = RunOptions(steps=1000, warmup_steps=100, learning_rate=2.0, schedule="cosine")
    rates = [options.learning_rate_at(step) for step in range(1001)]
    assert rates[0] == pytest.approx(2.0 / 100)
    assert rates[49] == pytest.approx(1.0)
    assert rates[99] == rates[100] == pytest.approx(2.0)
    assert rates[550] == pytest.approx(2.0 * (0.01 + 0.99 / 2))
    assert rates[1000] == options.learning_rate_at(5000) == pytest.approx(0.02)
    assert rates[100:] == sorted(rates[100:], reverse=True)
    linear = replace(options, schedule="linear")
    falling = [linear.learning_rate_at(step) for step in (49, 99, 100, 550, 1000)]
    assert falling == pytest.approx([1.0, 2.0, 2.0, 1.0, 0.0])
    constant = replace(options, schedule="constant")
    assert {constant.learning_rate_at(step) for step in range(99, 1001)} == {2.0}


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (5, 5), (3, 10)])
def test_the_learning_rate_is_defined_for_the_shortest_runs(steps, warmup) -> None:
    options = RunOptions(steps=steps, warmup_steps=warmup, schedule="cosine")
    assert all(0 < options.learning_rate_at(step) <= options.learning_rate for step in range(steps))
