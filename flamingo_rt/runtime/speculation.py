"""Exact speculative decoding of one greedy row by prompt lookup (arXiv 2304.04487, "prompt lookup").

What followed where the row's last tokens stood before, in its prompt, its shots or its answer, is a guess of what
follows now. One step of the language model over the guess gives the logits at every position of it; tokens are chosen
from them one by one as ever, as long as the guess was right. So the answer is that of plain greedy decoding, however
good the guess, and however long a step is said to take: what is measured decides about the next guess's length alone.
(As exact as a backend computes a position alike in a step of one token and of several: float32 up to rounding.)

Ours is how much a guess is trusted. Captions are short and say new things in few forms: what follows "," is the same
every time, what follows "a" never is. So each guessed token has a confidence, from how the earlier occurrences of its
contexts agree, longer contexts before shorter ones; a step's size is that of the most tokens expected for its time.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np

from flamingo_rt.runtime.answer import Answer
from flamingo_rt.runtime.decoder import Decoder
from flamingo_rt.runtime.draft_length import DraftLength, Guess, StepCosts
from flamingo_rt.runtime.sampling import Sampler
from flamingo_rt.runtime.timing import Counts, StageTimer

# Where a context begins and ends, counted from the row's end; more telling ones are later. The first leaves out the
# newest token: behind a word that is new to the row, what stood behind others in its place.
CONTEXTS = ((-3, -1), (-1, None), (-2, None), (-3, None))
LONGEST_CONTEXT = 3
# A context's counts against what shorter contexts say, as in absolute discounting: how much is taken off a count, and
# what those weigh in occurrences.
DISCOUNT, PRIOR = 0.5, 1.0


@dataclass(slots=True)
class _Followers:
    """What followed a context: how often, and what did most often, of several the latest."""

    counts: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    total: int = 0
    likeliest: int = -1

    def add(self, token: int) -> None:
        self.counts[token] += 1
        self.total += 1
        if self.counts[token] >= self.counts.get(self.likeliest, 0):
            self.likeliest = token

    def confidence(self, token: int, shorter: float) -> float:
        """That ``token`` follows, when shorter contexts say so with confidence ``shorter``."""
        return (max(self.counts.get(token, 0) - DISCOUNT, 0.0) + PRIOR * shorter) / (self.total + PRIOR)


class PromptLookup:
    """The row's tokens, and what followed each of their contexts."""

    def __init__(self, ids: Iterable[int], stop_ids: AbstractSet[int]) -> None:
        self._stop_ids = stop_ids
        self._last: list[int] = []
        self._after: dict[tuple[int, ...], _Followers] = {}
        for token in ids:
            self.append(token)

    def append(self, token: int) -> None:
        """The row has one more token."""
        for key in _contexts(self._last):
            self._after.setdefault(key, _Followers()).add(token)
        self._last = [*self._last, token][-LONGEST_CONTEXT:]

    def guesses(self) -> Iterator[Guess]:
        """Tokens that may follow one after the other, each as if those before it were right, as many as are asked for;
        none more where no context is known, or behind an end token."""
        last = self._last
        while (guess := self._next(last)) is not None:
            yield guess
            if guess.token in self._stop_ids:
                return
            last = [*last, guess.token][-LONGEST_CONTEXT:]

    def _next(self, last: list[int]) -> Guess | None:
        """The token that follows with the highest confidence, if any does."""
        found: list[_Followers] = []
        known = 0
        for key in _contexts(last):
            followers = self._after.get(key)
            if followers is None:
                continue
            known += 1
            # As often as the shorter one: the same occurrences, which say nothing more.
            if not found or followers.total != found[-1].total:
                found.append(followers)
        best: Guess | None = None
        for token in {followers.likeliest: None for followers in reversed(found)}:
            confidence = 0.0
            for followers in found:
                confidence = followers.confidence(token, confidence)
            if best is None or confidence > best.confidence:
                best = Guess(token, confidence, known)
        return best


def _contexts(last: list[int]) -> Iterator[tuple[int, ...]]:
    """The contexts that a row of which these are the last tokens has; the first is marked as another kind."""
    for number, (start, end) in enumerate(CONTEXTS):
        if len(last) >= -start:
            yield (*last[start:end], -1) if number == 0 else tuple(last[start:])


def speculate(
    decoder: Decoder, logits: np.ndarray, answer: Answer, sampler: Sampler, lookup: PromptLookup, most: int,
    costs: StepCosts, timer: StageTimer, counts: Counts,
) -> Iterator[str]:
    """Let ``answer`` grow to its end; yields the new text after each token. ``logits`` [vocab] are those after the
    prompt that ``lookup`` holds, ``most`` is how many tokens may be guessed in a step, ``costs`` what steps took in
    other answers."""
    length = DraftLength(most, costs)
    guesses, size, rows = [], 1, logits[None]
    while True:
        for position in range(size):
            token, logprob = sampler.choose(rows[position])
            lookup.append(token)
            right = position < len(guesses) and token == guesses[position].token
            if position < len(guesses):
                length.saw(guesses[position], right)
            if position < size - 1:
                counts.accepted += right
            yield answer.push(token, logprob)
            if answer.stop_reason is not None:
                return
            if not right:
                break
        # What the cache holds of a wrong guess is written over by the next tokens.
        decoder.rewind(int(decoder.lengths[0]) - (size - 1 - position))
        # More than the answer takes has no room in the cache.
        guesses, size = length.choose(lookup.guesses(), min(most, answer.room - 1))
        counts.steps += 1
        counts.drafted += size - 1
        start = time.perf_counter()
        with timer.stage("decode"):
            rows = decoder.extend(np.array([token, *(guess.token for guess in guesses[: size - 1])], dtype=np.int64))
        costs.took(size, time.perf_counter() - start)
