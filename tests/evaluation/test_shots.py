"""Shots: the same for the same seed, never the query's own picture, balanced, and nearest last."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flamingo_rt.errors import DataError
from flamingo_rt.evaluation.shots import BalancedShots, GroupShots, NearestShots, RandomShots, require_support
from flamingo_rt.evaluation.task import Item

SUPPORT = [Item(f"s{number}", Path(f"{number}.png"), None, ("abc"[number % 3],)) for number in range(12)]
QUERY = Item("q", Path("q.png"), None, ("a",))


def names(shots: tuple[Item, ...]) -> list[str]:
    return [shot.name for shot in shots]


@pytest.mark.parametrize("chooser", [RandomShots(SUPPORT), BalancedShots(SUPPORT)], ids=["random", "balanced"])
def test_one_seed_gives_all_queries_the_same_shots_and_more_shots_hold_fewer(chooser) -> None:
    other = replace(QUERY, name="other", file=Path("other.png"))
    assert names(chooser.choose(QUERY, 5, 3)) == names(chooser.choose(other, 5, 3))
    assert names(chooser.choose(QUERY, 8, 3))[:5] == names(chooser.choose(QUERY, 5, 3))
    assert len({tuple(names(chooser.choose(QUERY, 5, seed))) for seed in range(6)}) > 3


@pytest.mark.parametrize("kind", [RandomShots, lambda support, redraw: BalancedShots(support, (), redraw)])
def test_one_chooser_draws_for_each_group_anew(kind) -> None:
    chooser, other = kind(SUPPORT, redraw=False), replace(QUERY, group="g")
    assert names(chooser.choose(QUERY, 8, 0)) != names(chooser.choose(other, 8, 0))
    assert names(chooser.choose(other, 8, 0)) == names(kind(SUPPORT, redraw=False).choose(other, 8, 0))


@pytest.mark.parametrize("kind", [RandomShots, lambda support, redraw: BalancedShots(support, (), redraw)])
def test_redrawn_shots_differ_by_query_and_stay_the_same_for_it(kind) -> None:
    chooser = kind(SUPPORT, redraw=True)
    queries = [replace(QUERY, name=f"q{number}") for number in range(6)]
    found = [tuple(names(chooser.choose(query, 4, 0))) for query in queries]
    assert len(set(found)) > 3
    assert found == [tuple(names(chooser.choose(query, 4, 0))) for query in queries]


@pytest.mark.parametrize("chooser", [RandomShots(SUPPORT), BalancedShots(SUPPORT)], ids=["random", "balanced"])
def test_a_query_is_no_shot_of_its_own_under_any_name(chooser) -> None:
    for number in range(12):
        same = replace(SUPPORT[number], name="another question about it")
        assert SUPPORT[number] not in chooser.choose(same, 11, 0)
    with pytest.raises(DataError, match="12 shots are asked for, and the support has 11"):
        chooser.choose(SUPPORT[0], 12, 0)


@pytest.mark.parametrize("shots", [11, 12])
def test_a_support_that_is_too_small_is_found_before_a_choice(shots) -> None:
    twice = [*SUPPORT, replace(SUPPORT[0], name="another question about it")]  # two about one picture
    told = pytest.raises(DataError, match="11 items beside the query s0: add some")
    expected = nullcontext() if shots == 11 else told
    with expected:
        require_support(SUPPORT, twice, shots, "add some")
        assert len(RandomShots(twice).choose(SUPPORT[0], shots, 0)) == shots


@pytest.mark.parametrize("chooser", [RandomShots([]), BalancedShots([]), NearestShots([], {QUERY: np.ones(3)})],
                         ids=["random", "balanced", "nearest"])
def test_an_empty_support_is_told(chooser) -> None:
    with pytest.raises(DataError, match="1 shots are asked for, and the support has 0"):
        chooser.choose(QUERY, 1, 0)


def test_texts_without_pictures_are_told_apart_by_what_they_say() -> None:
    texts = [Item(f"t{number}", None, "How many?", (str(number),)) for number in range(3)]
    assert set(RandomShots(texts).choose(texts[0], 2, 0)) == set(texts[1:])


def test_balanced_shots_have_every_class_as_often() -> None:
    support = SUPPORT + [Item(f"more{number}", Path(f"m{number}.png"), None, ("a",)) for number in range(20)]
    for seed in range(4):
        counts = Counter(shot.answer for shot in BalancedShots(support).choose(QUERY, 8, seed))
        assert sorted(counts.values()) == [2, 3, 3]


def test_a_class_without_support_is_named() -> None:
    with pytest.raises(DataError, match="no support item has the answer 'd' \\(1 of 2 classes have none\\)"):
        BalancedShots(SUPPORT, ("a", "d"))


def test_the_nearest_pictures_come_last() -> None:
    angles = np.linspace(0, 1.5, 12)
    features = np.stack([np.cos(angles), np.sin(angles)], 1)
    chooser = NearestShots(SUPPORT, {**dict(zip(SUPPORT, features, strict=True)), QUERY: features[7]})
    assert names(chooser.choose(QUERY, 3, 0))[-1] == "s7"
    assert set(names(chooser.choose(QUERY, 3, 0))) == {"s6", "s7", "s8"}
    assert names(chooser.choose(SUPPORT[3], 2, 5))[-1] in ("s2", "s4"), "its own picture is no shot"


def test_shots_come_from_the_querys_own_group() -> None:
    pools = {name: [Item(f"{name}{number}", Path(f"{name}{number}.png"), None, ("a",), group=name)
                    for number in range(6)] for name in ("x", "y")}
    chooser = GroupShots({name: RandomShots(pool) for name, pool in pools.items()})
    orders = set()
    for name in pools:
        found = names(chooser.choose(Item("q", Path("q.png"), None, ("a",), group=name), 6, 0))
        assert {each[0] for each in found} == {name}
        orders.add(tuple(each[1:] for each in found))
    assert len(orders) == 2, "groups of one size have orders of their own"
