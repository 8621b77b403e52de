"""How many guessed tokens a step takes: from how likely they are, how often such guesses were right, and how long steps
of each size take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import islice, pairwise
from statistics import median
from typing import NamedTuple

WORTH = 1.05  # tokens gained for the time of one; less could be an error of the estimates
LEAST = 0.02  # a token that is less likely to be reached is not guessed
MOST_SURE = 0.98
# What was right and expected before anything was seen, in guesses, and what stays of both with each that is.
FIRST_SEEN, KEPT = 4.0, 0.9
# Time of a guessed token, in steps of one token, until a step of any guess has been measured.
FIRST_COST = 0.15
SAMPLES, RECENT = 2, 8  # runs of a size that make its time known, and that it is the median of
FORGOTTEN = 100  # steps without one of a size, after which it is no longer known what it takes


class Guess(NamedTuple):
    """A token that may follow, how likely, and by how many contexts."""

    token: int
    confidence: float
    contexts: int


class StepCosts:
    """What steps of several tokens take, in steps of one; a model keeps it from answer to answer, for many are short.

    By the median, which counts the first runs of an answer, those that also prepare, as often as they are made."""

    def __init__(self) -> None:
        self._steps = 0
        self._latest: dict[int, int] = {}
        # Replaced, never changed: answers may run in several threads.
        self._seconds: tuple[float, ...] = ()
        self._ratios: dict[int, tuple[float, ...]] = {}

    def took(self, size: int, seconds: float) -> None:
        """A step of ``size`` tokens took so long."""
        self._steps += 1
        if size == 1:
            self._seconds = (*self._seconds, seconds)[-RECENT:]
        elif self._seconds:
            # Beside the plain steps of just now: a longer context or a busier machine makes both longer.
            ratio = seconds / max(median(self._seconds), 1e-9)
            before = self._ratios.get(size, ()) if self._fresh(size) else ()
            self._ratios[size], self._latest[size] = (*before, ratio)[-RECENT:], self._steps

    def known(self, size: int) -> bool:
        """Whether it was measured what such a step takes."""
        if size == 1:
            return len(self._seconds) >= SAMPLES
        return self._fresh(size) and len(self._ratios[size]) >= SAMPLES

    def cost(self, size: int) -> float:
        """Of a step of ``size`` tokens; what was not measured goes on as from 1 to the largest smaller that was."""
        measured = tuple(self._ratios)  # at once: another answer's thread may add a size
        largest = max((other for other in measured if other <= size and self.known(other)), default=1)
        if largest == 1:
            return 1 + FIRST_COST * (size - 1)
        return max(1.0, 1 + (median(self._ratios[largest]) - 1) * (size - 1) / (largest - 1))

    def _fresh(self, size: int) -> bool:
        return size in self._latest and self._steps - self._latest[size] <= FORGOTTEN


class DraftLength:
    """Decides what the next step of an answer takes, and learns from its guesses how far confidences are right."""

    def __init__(self, most: int, costs: StepCosts) -> None:
        """``most`` tokens are guessed at most. Few sizes: a backend prepares for each."""
        self.sizes = [1, *(size for size in (2, 4, 8, 16) if size <= most), 1 + most]
        self._costs = costs
        self._right: defaultdict[int, float] = defaultdict(lambda: FIRST_SEEN)
        self._expected: defaultdict[int, float] = defaultdict(lambda: FIRST_SEEN)

    def choose(self, guesses: Iterator[Guess], most: int) -> tuple[list[Guess], int]:
        """The guesses worth a thought, at most ``most``, and the next step's size: its first token is no guess, the
        others are the first of them. It is the size of the most tokens expected for its time."""
        thought: list[Guess] = []
        reached, tokens = 1.0, [1.0]  # that all guesses so far are right; what a step gives that takes so many
        for guess in islice(guesses, most):
            thought.append(guess)
            reached *= self._likelihood(guess)
            if reached < LEAST:
                break
            tokens.append(tokens[-1] + reached)
        best, gain = 1, WORTH
        for smaller, size in pairwise(self.sizes):
            # Each size is tried when the time of the smaller one is known: a long step may take six times a short one.
            if size > len(tokens) or not self._costs.known(smaller):
                break
            if tokens[size - 1] / self._costs.cost(size) > gain:
                best, gain = size, tokens[size - 1] / self._costs.cost(size)
        return thought, best

    def saw(self, guess: Guess, right: bool) -> None:
        """A guess was right or not; one that no step was spent on counts too."""
        kind = guess.contexts
        self._right[kind] = KEPT * self._right[kind] + right
        self._expected[kind] = KEPT * self._expected[kind] + guess.confidence

    def _likelihood(self, guess: Guess) -> float:
        """The confidence, corrected by how often guesses of as many contexts were right."""
        kind = guess.contexts
        return min(MOST_SURE, self._right[kind] / self._expected[kind] * guess.confidence)
