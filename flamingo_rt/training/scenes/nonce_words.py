"""Words that mean nothing: names that a model can know from its prompt alone."""

from __future__ import annotations

from functools import cache

import numpy as np

from flamingo_rt.training.scenes.scene import Split

_BEGINNINGS, _MIDDLES, _ENDS = "bdfgklmnprtvz", "aeiou", "fklmnprstx"
SYLLABLES: tuple[str, ...] = tuple(
    begin + middle + _ENDS[(7 * number + 3 * place) % len(_ENDS)]
    for number, begin in enumerate(_BEGINNINGS) for place, middle in enumerate(_MIDDLES)
)[:60]
HELD_OUT_EVERY = 5  # one pair of syllables in so many is in no training text


def nonce_words(rng: np.random.Generator, split: Split, count: int) -> list[str]:
    """``count`` different words of two syllables, such as ``dakzup``; those of the two splits are different words."""
    words = known_words(split)
    return [words[index] for index in rng.choice(len(words), count, replace=False)]


@cache
def known_words(split: Split) -> list[str]:
    """All words of a split, of which `nonce_words` draws."""
    held_out = split == "heldout"
    return [
        one + other for first, one in enumerate(SYLLABLES) for second, other in enumerate(SYLLABLES)
        if ((first + 2 * second) % HELD_OUT_EVERY == 0) == held_out
    ]


def glyph_name(number: int) -> str:
    """A name for a character in texts, which nothing else has: a syllable with a number."""
    return f"{SYLLABLES[number % len(SYLLABLES)]}{number // len(SYLLABLES)}"
