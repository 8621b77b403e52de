"""Rows of random tokens that repeat. To predict one of them a model must find what it copies: the mechanism on which
few-shot prompts rest, and which text alone teaches a small model late (arXiv 2209.11895)."""

from __future__ import annotations

import numpy as np

from flamingo_rt.model.flamingo import IGNORED_LABEL

SHORTEST, LONGEST = 4, 15  # tokens of a segment
STRETCH = 64  # tokens that one segment fills, before another follows


def repeated_segment(rng: np.random.Generator, token_ids: np.ndarray, length: int) -> tuple[list[int], list[int]]:
    """A row of ``length`` tokens and its labels: stretches of `STRETCH` tokens, in each a segment of `SHORTEST` to
    `LONGEST` random tokens of ``token_ids``, again and again. All but its first occurrence are targets.

    One segment fills a stretch: where several take turns at random, fewer tokens are certain, and a small model learns
    to copy later; where one fills a long row, most tokens can be guessed from what the row holds, without their order.
    ``length`` must be at least 2 * `SHORTEST`.
    """
    ids: list[int] = []
    labels: list[int] = []
    while len(ids) < length:
        stretch = min(STRETCH, length - len(ids))
        size = int(rng.integers(SHORTEST, max(SHORTEST, min(LONGEST, stretch // 2)) + 1))
        segment = rng.choice(token_ids, size).tolist()
        repeated = (segment * -(-stretch // size))[:stretch]
        ids += repeated
        labels += ([IGNORED_LABEL] * size + repeated[size:])[:stretch]
    return ids, labels
