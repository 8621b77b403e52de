"""The support items that are a query's shots: drawn at random, balanced by class, or nearest to the query (RICES).

No item is a shot for a query about the same picture. With one seed, the shots of a smaller number are among those of a
larger one.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Literal, Protocol

import numpy as np

from flamingo_rt.errors import DataError
from flamingo_rt.evaluation.task import Item

Selection = Literal["random", "balanced", "rices"]


class ShotChooser(Protocol):
    """A rule that gives a query's shots, in the order in which the prompt has them."""

    def choose(self, query: Item, count: int, seed: int) -> tuple[Item, ...]:
        """Give ``count`` support items for a query. Raises `DataError` where there are fewer."""
        ...


class GroupShots:
    """Shots from the support of the query's own group, chosen in one way in all groups."""

    def __init__(self, by_group: Mapping[str, ShotChooser]) -> None:
        self._by_group = by_group

    def choose(self, query: Item, count: int, seed: int) -> tuple[Item, ...]:
        """See `ShotChooser.choose`."""
        return self._by_group[query.group].choose(query, count, seed)


class RandomShots:
    """Shots from one order of the support a seed, the same for all queries; with ``redraw`` from another order for each
    query."""

    def __init__(self, support: Sequence[Item], redraw: bool = False) -> None:
        self._support, self._redraw = support, redraw
        self._orders: dict[tuple[int, str], np.ndarray] = {}

    def choose(self, query: Item, count: int, seed: int) -> tuple[Item, ...]:
        """See `ShotChooser.choose`."""
        order = self._order(query, seed)
        return _first(query, (self._support[index] for index in order), count)

    def _order(self, query: Item, seed: int) -> np.ndarray:
        if self._redraw:
            return _generator(seed, query.name).permutation(len(self._support))
        key = seed, query.group  # of a group all queries have the same
        if key not in self._orders:
            self._orders[key] = _generator(*key).permutation(len(self._support))
        return self._orders[key]


class BalancedShots:
    """Shots that go through the classes again and again, each round in another order, so that no class has two more
    than another. A class is an answer."""

    def __init__(self, support: Sequence[Item], classes: Sequence[str] = (), redraw: bool = False) -> None:
        """Raises `DataError` for one of ``classes`` that has no support."""
        self._by_class = {name: [item for item in support if item.answer == name]
                          for name in classes or dict.fromkeys(item.answer for item in support)}
        self._redraw = redraw
        self._orders: dict[tuple[int, str], list[Item]] = {}
        empty = [name for name, items in self._by_class.items() if not items]
        if empty:
            raise DataError(f"no support item has the answer {empty[0]!r} ({len(empty)} of {len(self._by_class)} "
                            "classes have none): add some, or choose shots at random")

    def choose(self, query: Item, count: int, seed: int) -> tuple[Item, ...]:
        """See `ShotChooser.choose`."""
        if self._redraw:
            return _first(query, self._order(_generator(seed, query.name)), count)
        key = seed, query.group  # of a group all queries have the same
        if key not in self._orders:
            self._orders[key] = list(self._order(_generator(*key)))
        return _first(query, self._orders[key], count)

    def _order(self, generator: np.random.Generator) -> Iterator[Item]:
        queues = [(items, generator.permutation(len(items))) for items in self._by_class.values()]
        for turn in range(max((len(order) for _, order in queues), default=0)):
            for number in generator.permutation(len(queues)):
                items, order = queues[number]
                if turn < len(order):
                    yield items[order[turn]]


class NearestShots:
    """Shots whose pictures are nearest to the query's by the vision encoder's features, the nearest last (RICES: Yang
    et al., arXiv 2109.05014; appendix B.1.5). The seed changes nothing."""

    def __init__(self, support: Sequence[Item], features: Mapping[Item, np.ndarray]) -> None:
        """``features`` [D], of length 1, of the pictures of the support and of the queries."""
        self._support, self._features = support, features
        self._supports = np.array([features[item] for item in support])

    def choose(self, query: Item, count: int, seed: int) -> tuple[Item, ...]:
        """See `ShotChooser.choose`."""
        nearness = self._supports @ self._features[query] if self._support else np.zeros(0)
        order = np.argsort(-nearness, kind="stable")
        return _first(query, (self._support[index] for index in order), count)[::-1]


def require_support(items: Sequence[Item], support: Sequence[Item], shots: int, remedy: str) -> None:
    """Raise `DataError`, with ``remedy`` at its end, where an item's group has fewer than ``shots`` support items
    beside the item itself and others about its picture."""
    sizes = Counter(item.group for item in support)
    own = Counter((item.group, item.file or item) for item in support)
    for item in items:
        _require(item, sizes[item.group] - own[item.group, item.file or item], shots, remedy)


def _generator(seed: int, key: str) -> np.random.Generator:
    """The random numbers of a query by its name, or else of its group: those of two groups are not alike."""
    return np.random.default_rng([seed, *([zlib.crc32(key.encode())] if key else [])])


def _first(query: Item, order: Iterable[Item], count: int) -> tuple[Item, ...]:
    others = (item for item in order if item != query and (item.file is None or item.file != query.file))
    found = tuple(islice(others, count))
    _require(query, len(found), count, "ask for fewer, or add support")
    return found


def _require(query: Item, found: int, shots: int, remedy: str) -> None:
    if found < shots:
        raise DataError(f"{shots} shots are asked for, and the support has {found} items beside the query "
                        f"{query.name}: {remedy}")
