"""Rows of random tokens whose segments repeat. To predict one of them a model must find what it copies: the mechanism
on which few-shot prompts rest, and which text alone teaches a small model late (arXiv 2209.11895)."""

from __future__ import annotations

import numpy as np

from flamingo_rt.model.flamingo import IGNORED_LABEL

SHORTEST, LONGEST = 4, 15  # tokens of a segment


def repeated_segments(rng: np.random.Generator, token_ids: np.ndarray, length: int) -> tuple[list[int], list[int]]:
    """A row of ``length`` tokens of ``token_ids``, and its labels, of which at least a tenth are targets.

    Segments of `SHORTEST` to `LONGEST` tokens stand one after the other, each drawn from a few, so that a good part of
    the row repeats what stands somewhere before it. A segment's first occurrence and each occurrence's first token
    cannot be predicted, and are no targets. ``length`` must be at least 2 * `SHORTEST`.
    """
    longest = min(LONGEST, length // 2)
    few = int(rng.integers(1, max(1, length // (SHORTEST + longest)) + 1))  # together they fill no row
    pool = [rng.choice(token_ids, int(rng.integers(SHORTEST, longest + 1))).tolist() for _ in range(few)]
    ids: list[int] = []
    labels: list[int] = []
    seen: set[int] = set()
    while len(ids) < length:
        chosen = int(rng.integers(few))
        segment = pool[chosen]
        ids += segment
        targets = segment[1:] if chosen in seen else [IGNORED_LABEL] * (len(segment) - 1)
        labels += [IGNORED_LABEL, *targets]
        seen.add(chosen)
    return ids[:length], labels[:length]
