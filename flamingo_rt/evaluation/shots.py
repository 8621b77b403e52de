"""The support items that are a query's shots: drawn at random, balanced by class, or nearest to the query (RICES).

No item is a shot for a query about the same picture. With one seed, the shots of a smaller number are among those of a
larger one.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from flamingo_rt.errors import DataError
from flamingo_rt.evaluation.task import Item

Selection = Literal["random", "balanced", "rices"]
SELECTIONS: tuple[Selection, ...] = ("random", "balanced", "rices")


class ShotChooser(Protocol):
    """A rule that gives a query's shots, in the order in which the prompt has them."""

    def choose(self, query: Item, count: int, seed: int) -> tuple[Item, ...]:
        """Give ``count`` support items for a query. Raises `DataError` where there are fewer."""
        ...


class RandomShots:
    """Shots from one order of the support a seed, the same for all queries; with ``redraw`` from another order for each
    query."""

    def __init__(self, support: Sequence[Item], redraw: bool = False) -> None:
        self._support, self._redraw = support, redraw

    def choose(self, query: Item, count: int, seed: int) -> tuple[Item, ...]:
        """See `ShotChooser.choose`."""
        order = _generator(seed, query if self._redraw else None).permutation(len(self._support))
        return _first(query, [self._support[index] for index in order], count)


class BalancedShots:
    """Shots that go through the classes again and again, each round in another order, so that no class has two more
    than another. A class is an answer."""

    def __init__(self, support: Sequence[Item], classes: Sequence[str] = (), redraw: bool = False) -> None:
        """Raises `DataError` for one of ``classes`` that has no support."""
        self._by_class = {name: [item for item in support if item.answer == name]
                          for name in classes or dict.fromkeys(item.answer for item in support)}
        self._redraw = redraw
        empty = [name for name, items in self._by_class.items() if not items]
        if empty:
            raise DataError(f"no support item has the answer {empty[0]!r} ({len(empty)} of {len(self._by_class)} "
                            "classes have none): add some, or choose shots at random")

    def choose(self, query: Item, count: int, seed: int) -> tuple[Item, ...]:
        """See `ShotChooser.choose`."""
        generator = _generator(seed, query if self._redraw else None)
        queues = [[items[index] for index in generator.permutation(len(items))] for items in self._by_class.values()]
        order: list[Item] = []
        for turn in range(max(map(len, queues))):
            order += [queues[number][turn] for number in generator.permutation(len(queues))
                      if turn < len(queues[number])]
        return _first(query, order, count)


class NearestShots:
    """Shots whose pictures are nearest to the query's by the vision encoder's features, the nearest last (RICES: Yang
    et al., arXiv 2109.05014; appendix B.1.5). The seed changes nothing."""

    def __init__(self, support: Sequence[Item], features: np.ndarray, query_features: dict[str, np.ndarray]) -> None:
        """``features`` [N, D] of the support's pictures and ``query_features`` [D] by the name of a query, all of
        length 1."""
        self._support, self._features, self._queries = support, features, query_features

    def choose(self, query: Item, count: int, seed: int) -> tuple[Item, ...]:
        """See `ShotChooser.choose`."""
        nearness = self._features @ self._queries[query.name]
        order = np.argsort(-nearness, kind="stable")
        return _first(query, [self._support[index] for index in order], count)[::-1]


def _generator(seed: int, query: Item | None) -> np.random.Generator:
    return np.random.default_rng([seed, *([] if query is None else [zlib.crc32(query.name.encode())])])


def _first(query: Item, order: Sequence[Item], count: int) -> tuple[Item, ...]:
    found = [item for item in order if item != query and (item.file is None or item.file != query.file)][:count]
    if len(found) < count:
        raise DataError(f"{count} shots are asked for, and the support has {len(found)} items beside the query "
                        f"{query.name}: ask for fewer, or add support")
    return tuple(found)
