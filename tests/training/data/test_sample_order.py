"""The order of samples: each once an epoch, another order in each, and none of it kept in memory."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from flamingo_rt.training.data.sample_order import SampleOrder


@pytest.mark.parametrize("count", [*range(1, 18), 31, 32, 33, 1000])
def test_an_epoch_holds_every_sample_once(count) -> None:
    order = SampleOrder(count, seed=3, dataset=1)
    for epoch in range(3):
        drawn = [order.index(epoch * count + place) for place in range(count)]
        assert sorted(drawn) == list(range(count))


def test_epochs_seeds_and_datasets_have_orders_of_their_own() -> None:
    orders = [SampleOrder(100, seed, dataset) for seed in (0, 1) for dataset in (0, 1)]
    drawn = [tuple(order.index(epoch * 100 + place) for place in range(100)) for order in orders for epoch in (0, 1)]
    assert len(set(drawn)) == len(drawn)


def test_attempts_give_every_sample_once_from_far_away() -> None:
    for count in (1, 2, 9, 10, 64, 97):
        order = SampleOrder(count, seed=0)
        for position in (0, count - 1, 5 * count // 2):
            assert sorted(order.index(position, attempt) for attempt in range(count)) == list(range(count))
    order = SampleOrder(1000, seed=0)
    neighbours = {order.index(position) for position in range(490, 511)}
    assert order.index(500, 1) not in neighbours - {order.index(500)}


def test_all_orders_of_four_samples_are_about_equally_frequent() -> None:
    epochs = 4800
    found = Counter(
        tuple(SampleOrder(4, seed=11).index(4 * epoch + place) for place in range(4)) for epoch in range(epochs)
    )
    assert set(found) == set(itertools.permutations(range(4)))
    expected = epochs / 24
    statistic = sum((count - expected) ** 2 / expected for count in found.values())
    assert statistic < 49.7  # chi-square with 23 degrees of freedom exceeds this once in a thousand


def test_a_dataset_of_any_size_costs_the_same() -> None:
    order = SampleOrder(10**15, seed=0)
    assert len({order.index(position) for position in range(100)}) == 100
