"""Confidence intervals of a mean over items, by the bootstrap.

Percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3). Items are drawn with
replacement; an item keeps its values under all seeds, so seeds that share their items are not taken for more items.
Items that depend on one draw of shots are no independent trials: they are drawn as a group, all of them or none (the
cluster bootstrap; Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). With few groups,
ten or less, such intervals are too narrow.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from flamingo_rt.errors import UsageError

MOST_DRAWN_AT_ONCE = 4_000_000  # groups, 96 MB of indices, sums and sizes

Groups = Sequence[Hashable] | None  # the group of each item; None: each item is one


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its confidence interval, in the unit of the values."""

    mean: float
    low: float
    high: float


def bootstrap(
    values: np.ndarray, groups: Groups = None, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the mean of ``values`` [seeds, items] or [items] with its percentile interval over groups of items.

    The same arguments give the same interval. One group, or items with equal means, give an interval of no width.
    Scores that depend on their corpus, as CIDEr's do, count as they are: the corpus is not drawn again. Raises
    `UsageError` when there are no values or one is not finite, for another number of groups than items, and for
    options out of range.
    """
    if not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence!r}; it must be between 0 and 1, for example 0.95")
    if resamples < 1:
        raise UsageError(f"resamples is {resamples!r}; it must be 1 or more")
    means = _item_means(values)
    if groups is not None and len(groups) != len(means):
        raise UsageError(f"groups are given for {len(groups)} items, and there are {len(means)}")
    if np.all(means == means[0]):  # the mean of equal numbers may differ from them in its last bit
        return Interval(float(means[0]), float(means[0]), float(means[0]))
    drawn = _resampled_means(means, groups, resamples, np.random.default_rng(seed))
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(means.mean()), float(low), float(high))


def bootstrap_difference(
    first: np.ndarray, second: np.ndarray, groups: Groups = None, confidence: float = 0.95, resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the mean of ``first`` less that of ``second`` with its interval, for two conditions on the same items.

    Each is [seeds, items] or [items], with its items in the same order; numbers of seeds may differ. Items are drawn in
    pairs, so an item that is hard under both conditions widens nothing. Raises what `bootstrap` raises, and
    `UsageError` when the numbers of items differ.
    """
    first_means, second_means = _item_means(first), _item_means(second)
    if len(first_means) != len(second_means):
        counts = f"{len(first_means)} and {len(second_means)}"
        raise UsageError(f"the conditions have {counts} items: compare them on the same items")
    return bootstrap(first_means - second_means, groups, confidence, resamples, seed)


def _item_means(values: np.ndarray) -> np.ndarray:
    """The mean over seeds of each item, float64 [items]."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim not in (1, 2):
        raise UsageError(f"values have the shape {list(numbers.shape)}, [seeds, items] or [items] was expected")
    if not numbers.size:
        raise UsageError("there are no values: an interval needs one item or more")
    if not np.isfinite(numbers).all():
        raise UsageError(f"{np.count_nonzero(~np.isfinite(numbers))} of {numbers.size} values are not finite")
    return numbers if numbers.ndim == 1 else numbers.mean(axis=0)


def _resampled_means(
    items: np.ndarray, groups: Groups, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """The means [resamples] over the items of as many groups as there are, drawn with replacement."""
    sums, sizes = items, np.ones(len(items))
    if groups is not None:
        places: dict[Hashable, int] = {}
        of_items = [places.setdefault(group, len(places)) for group in groups]
        sums, sizes = np.bincount(of_items, items), np.bincount(of_items).astype(float)
    rows = max(1, MOST_DRAWN_AT_ONCE // len(sums))
    found = []
    for start in range(0, resamples, rows):
        drawn = rng.integers(len(sums), size=(min(rows, resamples - start), len(sums)))
        found.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    return np.concatenate(found)
