"""Handwritten digits: the 1797 pictures of 8 x 8 pixels that come with scikit-learn (no download)."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np

from flamingo_rt.errors import DependencyError

# The set is not shuffled: neighbours share a writer, so a cut by index holds out handwriting, not only pictures.
DIGIT_INDICES: dict[str, range] = {"train": range(1500), "heldout": range(1500, 1797)}
# Digits of which no training picture and no training text is made: what a model says of them it has from its prompt.
HELD_OUT_DIGITS: tuple[int, ...] = (7, 8, 9)
TRAINED_DIGITS: tuple[int, ...] = tuple(digit for digit in range(10) if digit not in HELD_OUT_DIGITS)


@lru_cache(maxsize=1)
def _load() -> tuple[np.ndarray, np.ndarray]:
    """Ink [1797, 8, 8] float32 in 0..1 and labels [1797] int64."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DependencyError("handwritten digits need scikit-learn: pip install 'flamingo-rt[train]'") from error
    digits = load_digits()
    return (digits.images / 16.0).astype(np.float32), digits.target


def digit_ink(index: int) -> np.ndarray:
    """Ink of one digit, [8, 8] float32 in 0..1, by its index in the whole set."""
    return _load()[0][index]


def digit_label(index: int) -> int:
    """The value, 0..9, of one digit, by its index in the whole set."""
    return int(_load()[1][index])


@cache
def digit_indices(split: str, digits: tuple[int, ...] = TRAINED_DIGITS) -> tuple[int, ...]:
    """The indices of a split's pictures that show one of ``digits``."""
    return tuple(index for index in DIGIT_INDICES[split] if digit_label(index) in digits)
