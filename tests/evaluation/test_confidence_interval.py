"""Bootstrap intervals: how often they hold the mean, what pairs and seeds do, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from flamingo_rt.errors import UsageError
from flamingo_rt.evaluation import confidence_interval
from flamingo_rt.evaluation.confidence_interval import Interval, bootstrap, bootstrap_difference

Draw = Callable[[np.random.Generator], np.ndarray]


def share_held(draw: Draw, mean: float, confidence: float) -> float:
    """The share of 200 intervals that hold ``mean``."""
    intervals = [bootstrap(draw(np.random.default_rng(seed)), None, confidence, 1000, seed) for seed in range(200)]
    return sum(interval.low <= mean <= interval.high for interval in intervals) / len(intervals)


# A percentile interval is a little narrow at 60 items; 200 tries have a standard error of 1.5 points at 95%.
@pytest.mark.parametrize(("draw", "mean"), [
    (lambda rng: rng.normal(3.0, 2.0, 60), 3.0),
    (lambda rng: rng.integers(2, size=60), 0.5),
    (lambda rng: rng.exponential(1.0, 60), 1.0),
])
def test_an_interval_holds_the_mean_about_as_often_as_it_says(draw: Draw, mean: float) -> None:
    assert 0.90 <= share_held(draw, mean, 0.95) <= 0.985
    assert 0.42 <= share_held(draw, mean, 0.5) <= 0.58


def test_an_interval_is_as_wide_as_the_normal_approximation_of_many_items() -> None:
    values = np.random.default_rng(0).normal(0, 1, 4000)
    interval = bootstrap(values, resamples=4000)
    error = values.std() / np.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_items_that_share_a_draw_are_drawn_together() -> None:
    """Each of 40 groups has a mean of its own, and its 25 items all have that mean: there are 40 trials, not 1,000."""
    groups = np.repeat(np.arange(40), 25)

    def held(given: np.ndarray | None) -> float:
        rngs = [np.random.default_rng(seed) for seed in range(200)]
        found = [bootstrap(rng.normal(0.5, 0.1, 40)[groups], given, resamples=500) for rng in rngs]
        return sum(interval.low <= 0.5 <= interval.high for interval in found) / len(found)

    assert 0.89 <= held(groups) <= 0.985
    assert held(None) < 0.5


def test_groups_of_other_sizes_count_by_their_items() -> None:
    interval = bootstrap(np.array([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"])
    assert interval == Interval(0.75, 0.0, 1.0)


def test_every_item_in_a_group_of_its_own_changes_nothing() -> None:
    values = np.random.default_rng(4).random(30)
    assert bootstrap(values, list(range(30))) == bootstrap(values)


def test_the_same_arguments_give_the_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(1).random((3, 40))
    assert bootstrap(values, seed=5) == bootstrap(values, seed=5)
    assert bootstrap(values, seed=5) != bootstrap(values, seed=6)


def test_seeds_of_the_same_items_are_no_further_items() -> None:
    values = np.random.default_rng(2).random(50)
    once, thrice = bootstrap(values), bootstrap(np.stack([values] * 3))
    np.testing.assert_allclose([thrice.mean, thrice.low, thrice.high], [once.mean, once.low, once.high])


def test_a_mean_of_means_is_resampled_by_item() -> None:
    values = np.array([[0.0, 1.0], [1.0, 0.0]])  # every item has the mean 0.5
    assert bootstrap(values) == Interval(0.5, 0.5, 0.5)


@pytest.mark.parametrize("values", [[0.1], [[0.1], [0.1], [0.1]], [0.1] * 7, [[0.1] * 7] * 3])
def test_one_item_or_equal_items_give_an_interval_of_no_width(values: list) -> None:
    interval = bootstrap(np.array(values))
    assert interval.low == interval.mean == interval.high == pytest.approx(0.1)


def test_blocks_of_resamples_give_what_one_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).random(30)
    whole = bootstrap(values, resamples=500)
    monkeypatch.setattr(confidence_interval, "MOST_DRAWN_AT_ONCE", 30 * 64)
    assert bootstrap(values, resamples=500) == whole


def test_a_difference_on_the_same_items_is_surer_than_each_mean() -> None:
    rng = np.random.default_rng(6)
    hardness = rng.normal(0, 1, 100)
    first, second = hardness + 0.2 + rng.normal(0, 0.1, (2, 100)), hardness + rng.normal(0, 0.1, (3, 100))
    difference, alone = bootstrap_difference(first, second), bootstrap(first)
    assert difference.low < 0.2 < difference.high
    assert difference.low > 0
    assert difference.high - difference.low < (alone.high - alone.low) / 5


def test_a_condition_does_not_differ_from_itself() -> None:
    values = np.random.default_rng(5).random((2, 20))
    assert bootstrap_difference(values, values) == Interval(0.0, 0.0, 0.0)


@pytest.mark.parametrize(("values", "options", "message"), [
    ([], {}, "there are no values"),
    (np.zeros((3, 0)), {}, "there are no values"),
    (np.zeros((0, 3)), {}, "there are no values"),
    (np.zeros((1, 2, 3)), {}, r"shape \[1, 2, 3\]"),
    (1.0, {}, r"shape \[\]"),
    ([0.0, float("nan"), float("inf")], {}, "2 of 3 values are not finite"),
    ([1.0], {"confidence": 95}, "confidence is 95"),
    ([1.0], {"confidence": 0.0}, "confidence is 0.0"),
    ([1.0], {"resamples": 0}, "resamples is 0"),
    ([1.0], {"groups": ["a", "b"]}, "groups are given for 2 items, and there are 1"),
])
def test_values_and_options_without_an_interval_are_refused(values: list, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bootstrap(np.array(values), **options)


def test_conditions_on_other_numbers_of_items_are_refused() -> None:
    with pytest.raises(UsageError, match="3 and 4 items"):
        bootstrap_difference(np.zeros(3), np.zeros((2, 4)))
