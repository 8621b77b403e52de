"""The description of a family of language models, and the layers that families share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flamingo_rt.config import LanguageConfig
from flamingo_rt.errors import DataError
from flamingo_rt.importing.settings import Settings
from flamingo_rt.importing.sources import Source, TensorSlice

PARTS = ("weight", "bias")


@dataclass(frozen=True)
class Family:
    """One architecture.

    ``layers``: the path of its decoder layers. ``embedding`` and ``head``: tensors with one row for each token.
    ``configure`` takes the ``config.json`` and the number of rows of the embedding. ``tensors`` gives the source of
    each of our tensors (``layers.0.attention.query.weight``, …) except those two.
    """

    name: str
    layers: str
    embedding: str
    head: str
    configure: Callable[[Settings, int], LanguageConfig]
    tensors: Callable[[Source, LanguageConfig], dict[str, TensorSlice]]


def plain(ours: str, theirs: str, bias: bool, weight: bool = True) -> dict[str, TensorSlice]:
    """Sources of a layer with the same weight and bias on both sides."""
    wanted = [part for part, there in zip(PARTS, (weight, bias), strict=True) if there]
    return {f"{ours}.{part}": TensorSlice(f"{theirs}.{part}") for part in wanted}


def fused(ours: str, theirs: str, bias: bool, heads: int = 1) -> dict[str, TensorSlice]:
    """Sources of query, key and value within one fused matrix."""
    return {
        f"{ours}.{name}.{part}": TensorSlice(f"{theirs}.{part}", index, 3, heads)
        for index, name in enumerate(("query", "key", "value"))
        for part in (PARTS if bias else PARTS[:1])
    }


def head_width(settings: Settings, width: int, heads: int) -> int:
    """Width of one head. Raises `DataError` when the heads do not divide ``width``."""
    if width % heads:
        raise DataError(f"{settings.path}: a width of {width} cannot be split into {heads} heads")
    return width // heads
