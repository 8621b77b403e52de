"""Rows of random tokens that repeat. To predict one of them a model must find what it copies: the mechanism on which
few-shot prompts rest, and which text alone teaches a small model late (arXiv 2209.11895)."""

from __future__ import annotations

import numpy as np

from flamingo_rt.model.flamingo import IGNORED_LABEL

SHORTEST, LONGEST = 4, 15  # tokens of a segment


def repeated_segment(rng: np.random.Generator, token_ids: np.ndarray, length: int) -> tuple[list[int], list[int]]:
    """A row of ``length`` tokens and its labels: a segment of `SHORTEST` to `LONGEST` random tokens of ``token_ids``,
    again and again. All but its first occurrence are targets.

    One segment fills the row: where several take turns at random, fewer tokens are certain, and a small model learns to
    copy later. ``length`` must be at least 2 * `SHORTEST`.
    """
    size = int(rng.integers(SHORTEST, min(LONGEST, length // 2) + 1))
    segment = rng.choice(token_ids, size).tolist()
    ids = (segment * -(-length // size))[:length]
    return ids, [IGNORED_LABEL] * size + ids[size:]
