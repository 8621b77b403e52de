"""CIDEr-D of captions (Vedantam et al., arXiv 1411.5726, sections 3 and 6), as COCO's evaluation computes it.

Own code, because the package ``pycocoevalcap`` is a download of 104 MB that needs Java and pycocotools, for a page of
arithmetic. Where its ``CiderScorer`` departs from the paper, this follows it: an n-gram of a candidate that no
reference has counts as if one item had it, and a caption is as long as it has pairs of neighbouring tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from flamingo_rt.errors import DataError
from flamingo_rt.evaluation.caption_tokens import caption_tokens

LONGEST_NGRAM = 4
SIGMA = 6.0  # tokens: standard deviation of the penalty for another length
SCALE = 10.0

Ngram = tuple[str, ...]


@dataclass(frozen=True)
class _Vector:
    """A caption's n-grams with their weights (TF-IDF), the norm of those of each length 1 to 4, and its length."""

    weights: dict[Ngram, float]
    norms: tuple[float, ...]
    length: int


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return the CIDEr-D score, 0 to 10, of each candidate caption against the reference captions of its item.

    The score of a corpus is the mean of these, which is ``pycocoevalcap``'s CIDEr; papers quote it times 100, so 1.138
    is 113.8. Document frequencies are those of ``references``: scores of other corpora do not compare, those of a few
    items say little, and one item alone scores 0. Texts are divided by `caption_tokens`. Raises `DataError` when an
    item has no reference and `ValueError` when there are not as many candidates as items.
    """
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates for {len(references)} items")
    for number, captions in enumerate(references, 1):
        if not captions:
            raise DataError(f"item {number} has no reference caption: give it one or more, or leave it out")
    counted = [[_ngrams(caption) for caption in captions] for captions in references]
    items_with = Counter(ngram for captions in counted for ngram in set().union(*captions))
    rarity = {ngram: math.log(len(references) / items) for ngram, items in items_with.items()}
    unseen = math.log(max(len(references), 1))
    return [
        _score(_vector(_ngrams(candidate), rarity, unseen), [_vector(counts, rarity, unseen) for counts in captions])
        for candidate, captions in zip(candidates, counted, strict=True)
    ]


def _ngrams(caption: str) -> Counter[Ngram]:
    tokens = caption_tokens(caption)
    return Counter(
        tuple(tokens[at : at + size])
        for size in range(1, LONGEST_NGRAM + 1) for at in range(len(tokens) - size + 1)
    )


def _vector(counts: Counter[Ngram], rarity: dict[Ngram, float], unseen: float) -> _Vector:
    weights = {ngram: count * rarity.get(ngram, unseen) for ngram, count in counts.items()}
    squares = [0.0] * LONGEST_NGRAM
    for ngram, weight in weights.items():
        squares[len(ngram) - 1] += weight**2
    pairs = sum(count for ngram, count in counts.items() if len(ngram) == 2)
    return _Vector(weights, tuple(map(math.sqrt, squares)), pairs)


def _score(candidate: _Vector, references: list[_Vector]) -> float:
    return SCALE * sum(_similarity(candidate, reference) for reference in references) / len(references)


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    """The mean over lengths of n-grams of the cosine, with weights clipped to the reference's, less for its length."""
    products = [0.0] * LONGEST_NGRAM
    for ngram in candidate.weights.keys() & reference.weights.keys():
        weight = reference.weights[ngram]
        products[len(ngram) - 1] += min(candidate.weights[ngram], weight) * weight
    norms = [ours * theirs for ours, theirs in zip(candidate.norms, reference.norms, strict=True)]
    cosines = sum(product / norm for product, norm in zip(products, norms, strict=True) if norm)
    penalty = math.exp(-((candidate.length - reference.length) ** 2) / (2 * SIGMA**2))
    return penalty * cosines / LONGEST_NGRAM
