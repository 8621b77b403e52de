"""Costs of steps of several tokens: a table, what lies between its sizes, and its form in a manifest."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_rt.step_costs import StepCosts

SCHEMES = (None, "int8", "fp8", "mixed", "int4")


def test_a_size_of_the_table_costs_what_the_table_says():
    costs = StepCosts(((2, 1.1), (8, 1.7)))
    assert [costs.cost(size) for size in (1, 2, 8)] == [1.0, 1.1, 1.7]


def test_between_two_sizes_and_beyond_the_largest_the_cost_is_linear():
    costs = StepCosts(((4, 1.3), (8, 1.7)))
    assert costs.cost(2) == pytest.approx(1.1)
    assert costs.cost(6) == pytest.approx(1.5)
    assert costs.cost(16) == pytest.approx(2.5)


def test_no_step_costs_less_than_one_token():
    assert StepCosts(((2, 3.0), (4, 1.0))).cost(32) == 1.0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_has_a_table_of_2_4_8_and_16_tokens(scheme):
    costs = StepCosts.of(scheme)
    assert [size for size, _ in costs.ratios] == [2, 4, 8, 16]
    assert all(costs.cost(size) <= size for size in range(1, 33))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_costs_are_read_as_they_were_written(scheme):
    costs = StepCosts.of(scheme)
    assert StepCosts.parse(json.loads(json.dumps(costs.to_json()))) == costs


def test_a_manifest_without_the_key_has_no_table():
    assert StepCosts.parse(None) is None


def test_the_order_of_keys_does_not_matter():
    assert StepCosts.parse({"16": 2, "2": 1.1}) == StepCosts(((2, 1.1), (16, 2)))


@pytest.mark.parametrize(
    "data",
    [
        {}, [], "2", 1.5, {"2": "1.1"}, {"2": True}, {"2": None}, {"2": 0.5}, {"2": float("nan")}, {"2": float("inf")},
        {"1": 1.0}, {"0": 1.0}, {"-2": 1.0}, {"2.0": 1.0}, {"two": 1.0}, {"²": 1.0}, {"2": 1.0, "02": 1.0},
        {"9" * 5000: 1.0}, {2: 1.0}, {"2": 10**400},
    ],
    ids=lambda data: str(data)[:30],
)
def test_nonsense_is_a_value_error(data):
    with pytest.raises(ValueError, match="cost"):
        StepCosts.parse(data)


@given(
    sizes=st.lists(st.integers(2, 64), min_size=1, max_size=5, unique=True),
    costs=st.lists(st.floats(1.0, 100.0), min_size=5, max_size=5), size=st.integers(1, 64),
)
def test_a_cost_is_a_number_of_at_least_one_token(sizes, costs, size):
    table = StepCosts(tuple(zip(sorted(sizes), costs, strict=False)))
    assert table.cost(size) >= 1.0
    assert table.cost(1) == 1.0
