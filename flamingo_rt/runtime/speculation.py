"""Exact speculative decoding of one greedy row by prompt lookup (arXiv 2304.04487, "prompt lookup").

Text that followed the row's last tokens earlier, in its prompt, its shots or its answer, is a draft of what follows
now. One step of the language model over the draft gives the logits at each of its positions. Tokens are chosen from
them one by one, as without a draft, until a guess turns out wrong. So the answer is that of plain greedy decoding,
whatever was guessed, as exactly as a backend computes the same position in steps of different sizes: in float32 up to
rounding. Which sizes are taken depends on the prompt, the options and a table of step costs alone, neither on the clock
nor on earlier answers. So tokens and log-probabilities are the same, bit for bit, in every run on a backend that
computes a step the same each time; ONNX Runtime on a CPU does, with the same number of threads.

Our addition is the length of a draft. Captions are short and say new things in few forms: the word after "," is always
the same, the word after "a" never is. So each guessed token has a confidence, by how far earlier occurrences of its
contexts agree, and a step has the size with the most tokens expected for its cost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np

from flamingo_rt.runtime.answer import Answer
from flamingo_rt.runtime.decoder import Decoder
from flamingo_rt.runtime.sampling import Sampler
from flamingo_rt.runtime.timing import Counts, StageTimer
from flamingo_rt.step_costs import StepCosts

# Start and end of each context, counted from the row's end; later ones say more. The first leaves out the newest
# token: after a word that is new to the row, it finds what stood after other words in the same place.
CONTEXTS = ((-3, -1), (-1, None), (-2, None), (-3, None))
LONGEST_CONTEXT = 3
# Interpolation of a context's counts with the shorter contexts, as in absolute discounting: the discount of each count,
# and the weight of the shorter contexts in occurrences.
DISCOUNT, PRIOR = 0.5, 1.0

MIN_GAIN = 1.05  # tokens expected for the cost of one; less may be an error of the estimates
MIN_REACHED = 0.02  # a token that is reached with a smaller probability is not guessed
MAX_PROBABILITY = 0.98  # of one guess
# Guesses that count as seen, and as right, before the first one, and the factor by which each guess makes those before
# it count less.
FIRST_SEEN, KEPT = 4.0, 0.9


class Guess(NamedTuple):
    """A token that may follow, its confidence (0 to 1), and the number of contexts that were found."""

    token: int
    confidence: float
    contexts: int


@dataclass(slots=True)
class _Followers:
    """Tokens that followed a context, counted, and the most frequent of them; of equally frequent ones the latest."""

    counts: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    total: int = 0
    likeliest: int = -1

    def add(self, token: int) -> None:
        self.counts[token] += 1
        self.total += 1
        if self.counts[token] >= self.counts.get(self.likeliest, 0):
            self.likeliest = token

    def confidence(self, token: int, shorter: float) -> float:
        """The confidence that ``token`` follows, given ``shorter``, that of the shorter contexts."""
        return (max(self.counts.get(token, 0) - DISCOUNT, 0.0) + PRIOR * shorter) / (self.total + PRIOR)


class PromptLookup:
    """Guesses from the row's own tokens: an index of the tokens that followed each context."""

    def __init__(self, ids: Iterable[int], stop_ids: AbstractSet[int]) -> None:
        """``ids`` are the tokens of the prompt. No guess goes on after one of ``stop_ids``."""
        self._stop_ids = stop_ids
        self._last: list[int] = []
        self._after: dict[tuple[int, ...], _Followers] = {}
        for token in ids:
            self.append(token)

    def append(self, token: int) -> None:
        """Add the row's next token."""
        for key in _contexts(self._last):
            self._after.setdefault(key, _Followers()).add(token)
        self._last = [*self._last, token][-LONGEST_CONTEXT:]

    def guesses(self) -> Iterator[Guess]:
        """Guess the next tokens, each as if those before it were right. Ends where no context is known and after an end
        token; otherwise there is no end."""
        last = self._last
        while (guess := self._next(last)) is not None:
            yield guess
            if guess.token in self._stop_ids:
                return
            last = [*last, guess.token][-LONGEST_CONTEXT:]

    def _next(self, last: list[int]) -> Guess | None:
        """The token with the highest confidence after ``last``; None where no context is known."""
        found: list[_Followers] = []
        known = 0
        for key in _contexts(last):
            followers = self._after.get(key)
            if followers is None:
                continue
            known += 1
            # A longer context that occurred as often as the shorter one has the same occurrences and adds nothing.
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
    """The contexts of a row that ends in ``last``, shorter ones first. The one that leaves out the newest token ends in
    -1, which is not a token."""
    for number, (start, end) in enumerate(CONTEXTS):
        if len(last) >= -start:
            yield (*last[start:end], -1) if number == 0 else tuple(last[start:])


class DraftLength:
    """Decides how many tokens each step of one answer takes, from the guesses' confidences, corrected by how many of
    this answer's guesses were right, and from the costs of steps."""

    def __init__(self, most: int, costs: StepCosts) -> None:
        """At most ``most`` tokens are guessed in a step. Steps have few sizes: a backend prepares for each."""
        self.sizes = [1, *(size for size in (2, 4, 8, 16) if size <= most), 1 + most]
        self._most, self._costs = most, costs
        self._right: defaultdict[int, float] = defaultdict(lambda: FIRST_SEEN)
        self._expected: defaultdict[int, float] = defaultdict(lambda: FIRST_SEEN)

    def choose(self, guesses: Iterator[Guess], room: int) -> tuple[list[Guess], int]:
        """Take guesses as long as they are likely enough to be reached, at most ``room``. Returns them with the size of
        the next step, which takes the row's newest token and the first size - 1 of them: the size with the most tokens
        expected for its cost."""
        considered: list[Guess] = []
        reached, expected = 1.0, [1.0]  # P(all guesses so far are right); tokens expected of a step, by its size - 1
        for guess in islice(guesses, min(room, self._most)):
            considered.append(guess)
            reached *= self._probability(guess)
            if reached < MIN_REACHED:
                break
            expected.append(expected[-1] + reached)
        best, gain = 1, MIN_GAIN
        for size in self.sizes[1:]:
            if size <= len(expected) and expected[size - 1] / self._costs.cost(size) > gain:
                best, gain = size, expected[size - 1] / self._costs.cost(size)
        return considered, best

    def saw(self, guess: Guess, right: bool) -> None:
        """Learn whether a guess was right; one that was not part of the step counts too."""
        kind = guess.contexts
        self._right[kind] = KEPT * self._right[kind] + right
        self._expected[kind] = KEPT * self._expected[kind] + guess.confidence

    def _probability(self, guess: Guess) -> float:
        """The guess's confidence, corrected by how often guesses from as many contexts were right."""
        kind = guess.contexts
        return min(MAX_PROBABILITY, self._right[kind] / self._expected[kind] * guess.confidence)


def speculate(
    decoder: Decoder, logits: np.ndarray, answer: Answer, sampler: Sampler, lookup: PromptLookup, length: DraftLength,
    timer: StageTimer, counts: Counts,
) -> Iterator[str]:
    """Decode ``answer`` to its end; yields the new text after each token. ``logits`` float32 [vocab] are those after
    the prompt, whose tokens ``lookup`` holds; ``length`` is new, for this answer alone. Milliseconds are added to
    ``timer``, steps and guesses to ``counts``."""
    guesses: list[Guess] = []
    size, rows = 1, logits[None]
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
        # The next tokens overwrite what the cache holds of wrong guesses.
        decoder.rewind(int(decoder.lengths[0]) - (size - 1 - position))
        # The cache has room for the answer's tokens alone.
        guesses, size = length.choose(lookup.guesses(), answer.room - 1)
        counts.steps += 1
        counts.drafted += size - 1
        with timer.stage("decode"):
            rows = decoder.extend(np.array([token, *(guess.token for guess in guesses[: size - 1])], dtype=np.int64))
