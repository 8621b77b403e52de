"""Exact speculative decoding of one greedy row by prompt lookup (arXiv 2304.04487, "prompt lookup").

Where the row's last tokens have stood before, in its prompt, its shots or its answer, what followed there is a guess of
what follows now. One step of the language model over the guess gives the logits at every position of it; tokens are
chosen from them one by one as ever, as long as the guess was right. So the answer is that of plain greedy decoding,
however good the guess, and however long a step is said to take: what is measured decides about the next guess's length
alone. (As exact as an engine computes a position alike in a step of one token and of several: float32 up to rounding.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from itertools import pairwise

import numpy as np

from flamingo_rt.runtime.answer import Answer
from flamingo_rt.runtime.decoder import Decoder
from flamingo_rt.runtime.sampling import Sampler
from flamingo_rt.runtime.timing import Counts, StageTimer

LONGEST_MATCH = 3
WORTH = 1.05  # tokens gained for the time of one; less could be an error of the estimates
# Of a match nothing is known of yet, and how fast what is seen takes its place.
FIRST_RATE, RATE_STEP = 0.5, 0.15
# Time of a guessed token, in steps of one token, until a step of any guess has been measured.
FIRST_COST = 0.15
SAMPLES = 2  # the first run of a binding also allocates what the later ones use


class PromptLookup:
    """The row's tokens, and where each run of up to `LONGEST_MATCH` of them was last followed by another."""

    def __init__(self, ids: Iterable[int], stop_ids: AbstractSet[int]) -> None:
        self._stop_ids = stop_ids
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        for token in ids:
            self.append(token)

    def append(self, token: int) -> None:
        """The row has one more token."""
        for length in range(1, min(LONGEST_MATCH, len(self._ids)) + 1):
            self._after[tuple(self._ids[-length:])] = len(self._ids)
        self._ids.append(token)

    def guess(self, most: int) -> tuple[list[int], int]:
        """At most ``most`` tokens that may follow, and how many tokens matched; none when nothing matched. An end token
        is the last. A guess that reaches the row's end goes on with itself: a repeated text is repeated."""
        for length in range(min(LONGEST_MATCH, len(self._ids)), 0, -1):
            start = self._after.get(tuple(self._ids[-length:]))
            if start is not None:
                return self._continued(start, most), length
        return [], 0

    def _continued(self, start: int, most: int) -> list[int]:
        guess: list[int] = []
        for position in range(start, start + most):
            behind = position - len(self._ids)
            guess.append(self._ids[position] if behind < 0 else guess[behind])
            if guess[-1] in self._stop_ids:
                break
        return guess


class DraftLength:
    """Decides how many tokens the next step takes, from how often guesses were right and how long steps took."""

    def __init__(self, most: int) -> None:
        """``most`` tokens are guessed at most. Few sizes: an engine prepares for each."""
        self.sizes = [1, *(size for size in (2, 4, 8, 16) if size <= most), 1 + most]
        self._rates = [FIRST_RATE] * (LONGEST_MATCH + 1)
        self._runs = dict.fromkeys(self.sizes, 0)
        # The least time: whatever else the machine did made a step longer, never shorter.
        self._seconds = dict.fromkeys(self.sizes, math.inf)

    def size(self, guessed: int, matched: int) -> int:
        """Tokens of the next step, of which the first is no guess: the size of the most tokens for its time."""
        best, most = 1, WORTH
        for smaller, size in pairwise(self.sizes):
            # Each size is tried when the time of the smaller one is known: a long step may take six times a short one.
            if size > 1 + guessed or self._runs[smaller] < SAMPLES:
                break
            gain = self._tokens(size, matched) / self._cost(size)
            if gain > most:
                best, most = size, gain
        return best

    def took(self, size: int, seconds: float) -> None:
        """A step of ``size`` tokens took so long."""
        self._runs[size] += 1
        self._seconds[size] = min(seconds, self._seconds[size])

    def saw(self, right: bool, matched: int) -> None:
        """A guess after a match of so many tokens was right or not; guesses that no step was spent on count too."""
        self._rates[matched] += RATE_STEP * (right - self._rates[matched])

    def _tokens(self, size: int, matched: int) -> float:
        """Tokens that a step is expected to give: its first, and each that all before it were right for."""
        return sum(self._rates[matched] ** count for count in range(size))

    def _cost(self, size: int) -> float:
        """Time of a step in steps of one token; what was not measured goes on as from 1 to the largest that was."""
        known = [s for s in self.sizes if s <= size and self._runs[s] >= SAMPLES][-1]
        if known == 1:
            return 1 + FIRST_COST * (size - 1)
        ratio = self._seconds[known] / max(self._seconds[1], 1e-9)
        return max(1.0, 1 + (ratio - 1) * (size - 1) / (known - 1))


def speculate(
    decoder: Decoder, logits: np.ndarray, answer: Answer, sampler: Sampler, lookup: PromptLookup, most: int,
    timer: StageTimer, counts: Counts,
) -> Iterator[str]:
    """Let ``answer`` grow to its end; yields the new text after each token. ``logits`` [vocab] are those after the
    prompt that ``lookup`` holds, ``most`` is how many tokens may be guessed in a step."""
    length = DraftLength(most)
    guess, matched, size, rows = [], 0, 1, logits[None]
    while True:
        for position in range(size):
            token, logprob = sampler.choose(rows[position])
            lookup.append(token)
            right = position < len(guess) and token == guess[position]
            if position < len(guess):
                length.saw(right, matched)
            if position < size - 1:
                counts.accepted += right
            yield answer.push(token, logprob)
            if answer.stop_reason is not None:
                return
            if not right:
                break
        # What the cache holds of a wrong guess is written over by the next tokens.
        decoder.rewind(int(decoder.lengths[0]) - (size - 1 - position))
        guess, matched = lookup.guess(min(most, answer.room - 1))  # more than the answer takes has no room in the cache
        size = length.size(len(guess), matched)
        counts.steps += 1
        counts.drafted += size - 1
        start = time.perf_counter()
        with timer.stage("decode"):
            rows = decoder.extend(np.array([token, *guess[: size - 1]], dtype=np.int64))
        length.took(size, time.perf_counter() - start)
