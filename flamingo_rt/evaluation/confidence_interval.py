"""Confidence intervals of a mean over items, by the bootstrap.

Percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3). Items are drawn with
replacement; an item keeps its values under all seeds, so seeds that share their items are not taken for more items.
The intervals say nothing about seeds that were not run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flamingo_rt.errors import UsageError

MOST_DRAWN_AT_ONCE = 4_000_000  # items, 64 MB of indices and values


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its confidence interval, in the unit of the values."""

    mean: float
    low: float
    high: float


def bootstrap(values: np.ndarray, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return the mean of ``values`` [seeds, items] or [items] with its percentile interval over items.

    The same arguments give the same interval. One item, or items with equal means, give an interval of no width.
    Scores that depend on their corpus, as CIDEr's do, count as they are: the corpus is not drawn again. Raises
    `UsageError` when there are no values or one is not finite, and for options out of range.
    """
    if not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence!r}; it must be between 0 and 1, for example 0.95")
    if resamples < 1:
        raise UsageError(f"resamples is {resamples!r}; it must be 1 or more")
    means = _item_means(values)
    if np.all(means == means[0]):  # the mean of equal numbers may differ from them in its last bit
        return Interval(float(means[0]), float(means[0]), float(means[0]))
    drawn = _resampled_means(means, resamples, np.random.default_rng(seed))
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(means.mean()), float(low), float(high))


def bootstrap_difference(
    first: np.ndarray, second: np.ndarray, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
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
    return bootstrap(first_means - second_means, confidence, resamples, seed)


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


def _resampled_means(items: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """The means [resamples] of as many items as there are, drawn with replacement."""
    rows = max(1, MOST_DRAWN_AT_ONCE // len(items))
    return np.concatenate([
        items[rng.integers(len(items), size=(min(rows, resamples - start), len(items)))].mean(axis=1)
        for start in range(0, resamples, rows)
    ])
