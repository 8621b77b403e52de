"""Beam search, by the rules of the transformers library (`generate(num_beams=…, early_stopping=False)`):

- A step takes the best (1 + number of end tokens) * beams continuations of all beams together, at least 2 * beams of
  them, by the sum of their log-probabilities; a repetition penalty acts on log-probabilities.
- A continuation that ends is a finished answer if it is among the best ``beams`` of these, else it is dropped. Its
  score is sum / tokens ** length_penalty, with the end token counted in both. The best ``beams`` finished answers are
  kept.
- The best ``beams`` continuations that do not end are the next beams.
- The search ends when there are ``beams`` finished answers and the worst of them scores no lower than this step's best
  sum / tokens ** length_penalty; or at the limit of tokens, where the beams become finished answers too.

Here a stop text ends a continuation as an end token does, and its tokens count. Our own, since an installed runtime has
no torch, and its beams share prefixes and caches of any backend.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flamingo_rt.runtime.answer import Answer
from flamingo_rt.runtime.decoder import Decoder
from flamingo_rt.runtime.generation_options import GenerationOptions
from flamingo_rt.runtime.sampling import largest, log_softmax, log_sum_exp, penalise_repetition
from flamingo_rt.runtime.timing import Counts, StageTimer


@dataclass(frozen=True)
class Beam:
    """An answer that may still grow; ``total`` is the sum of its tokens' log-probabilities."""

    answer: Answer
    total: float


class FinishedAnswers:
    """The best ``most`` finished answers."""

    def __init__(self, most: int, length_penalty: float) -> None:
        self._most, self._length_penalty = most, length_penalty
        self._scored: list[tuple[float, Answer]] = []  # ascending; among equals the later one is last

    def add(self, beam: Beam, tokens: int) -> None:
        """Add an answer of ``tokens`` tokens, its end token counted."""
        score = self._score(beam.total, tokens)
        if len(self._scored) == self._most and score <= self._scored[0][0]:
            return
        self._scored = sorted([*self._scored, (score, beam.answer)], key=lambda entry: entry[0])[-self._most :]

    def cannot_improve(self, best_total: float, tokens: int) -> bool:
        """Whether no finished answer can be displaced, given the best sum of a step whose answers have ``tokens``
        tokens."""
        return len(self._scored) == self._most and self._scored[0][0] >= self._score(best_total, tokens)

    def best(self) -> Answer:
        """The answer with the largest score."""
        return self._scored[-1][1]

    def _score(self, total: float, tokens: int) -> float:
        return total / tokens**self._length_penalty


@dataclass(frozen=True)
class Continuation:
    """The ``beam`` in a ``row`` and one more token: ranked by ``total``; ``logprob`` is the token's own under the
    model."""

    row: int
    beam: Beam
    token: int
    logprob: float
    total: float


class BeamSearch:
    """The beams of one prompt, each in a row of its own."""

    def __init__(self, options: GenerationOptions, answer: Answer, prompt_ids: np.ndarray, vocab_size: int) -> None:
        """``answer`` is empty."""
        self._options, self._count = options, max(2, 1 + len(answer.stop_ids)) * options.beams
        self._tokens = 0
        self._rows: list[Beam | None] = [Beam(answer, 0.0), *[None] * (options.beams - 1)]
        self._finished = FinishedAnswers(options.beams, options.length_penalty)
        self._read = np.zeros(vocab_size, dtype=bool)
        self._read[prompt_ids] = True
        self._scratch = np.empty(vocab_size, dtype=np.float32)

    def advance(self, logits: np.ndarray) -> tuple[np.ndarray, list[int]] | None:
        """Take one step. ``logits`` float32 [rows, vocab] are those of the present rows (at first one). Returns each
        row's next token, int64 [beams], and the row whose past it continues; None when the search has ended."""
        self._tokens += 1
        continuations, ended, running = self._divided(logits)
        for beam in ended:
            self._finished.add(beam, self._tokens)
        if not running or self._finished.cannot_improve(continuations[0].total, self._tokens):
            return None
        if any(beam.answer.stop_reason for beam, _ in running):  # the limit of tokens, reached by all at once
            for beam, _ in running:
                self._finished.add(beam, self._tokens)
            return None
        return self._placed(running)

    def best(self) -> Answer:
        """The best answer, once the search has ended."""
        return self._finished.best()

    def _divided(self, logits: np.ndarray) -> tuple[list[Continuation], list[Beam], list[tuple[Beam, Continuation]]]:
        """The best continuations, the finished answers among them, and the next beams."""
        beams, count = self._options.beams, self._count
        while True:
            continuations = self._best(logits, count)
            ended, running = [], []
            for rank, continuation in enumerate(continuations):
                beam = self._grown(continuation)
                if beam.answer.stop_reason not in ("end_of_chunk", "stop_string"):
                    running.append((beam, continuation))
                elif rank < beams:
                    ended.append(beam)
                if len(running) == beams:
                    break
            # Any number of tokens can complete a stop text.
            if len(running) == beams or len(continuations) < count:
                return continuations, ended, running
            count *= 2

    def _grown(self, continuation: Continuation) -> Beam:
        answer = continuation.beam.answer.fork()
        answer.push(continuation.token, continuation.logprob)
        return Beam(answer, continuation.total)

    def _best(self, logits: np.ndarray, count: int) -> list[Continuation]:
        """The ``count`` best continuations of all rows, best first."""
        found = [
            continuation
            for row, beam in enumerate(self._rows) if beam is not None
            for continuation in self._best_of_row(row, beam, logits[row], count)
        ]
        return sorted(found, key=lambda each: (-each.total, each.row, each.token))[:count]

    def _best_of_row(self, row: int, beam: Beam, logits: np.ndarray, count: int) -> Iterator[Continuation]:
        penalty = self._options.repetition_penalty
        if penalty == 1.0:
            normaliser = log_sum_exp(logits, self._scratch)
            tokens = largest(logits, count)
            logprobs = scores = logits[tokens].astype(np.float64) - normaliser
        else:
            seen = self._read.copy()
            seen[beam.answer.tokens] = True
            every = log_softmax(logits)
            penalised = penalise_repetition(every, seen, penalty)
            tokens = largest(penalised, count)
            logprobs, scores = every[tokens], penalised[tokens]
        for token, logprob, score in zip(tokens.tolist(), logprobs.tolist(), scores.tolist(), strict=True):
            if score > -math.inf:
                yield Continuation(row, beam, token, logprob, beam.total + score)

    def _placed(self, running: Sequence[tuple[Beam, Continuation]]) -> tuple[np.ndarray, list[int]]:
        """Give each beam a row, its parent's where possible, so that only forked beams are copied."""
        rows = len(self._rows)
        tokens, parents = np.zeros(rows, dtype=np.int64), list(range(rows))
        self._rows = [None] * rows
        forked = []
        for beam, continuation in running:
            if self._rows[continuation.row] is None:
                self._rows[continuation.row], tokens[continuation.row] = beam, continuation.token
            else:
                forked.append((beam, continuation))
        free = [row for row, beam in enumerate(self._rows) if beam is None]
        for row, (beam, continuation) in zip(free, forked, strict=False):  # there may be fewer beams than rows
            self._rows[row], tokens[row], parents[row] = beam, continuation.token, continuation.row
        return tokens, parents


def search(
    decoder: Decoder, logits: np.ndarray, beams: BeamSearch, rows: int, timer: StageTimer, counts: Counts
) -> Answer:
    """Run the search of one prompt to its end. ``logits`` [1, vocab] are those after the prompt in the only row."""
    chosen = beams.advance(logits)
    if chosen is not None:
        decoder.expand_rows(rows)
    while chosen is not None:
        tokens, parents = chosen
        counts.steps += 1
        with timer.stage("decode"):
            decoder.reorder(parents)
            logits = decoder.step(tokens)
        chosen = beams.advance(logits)
    return beams.best()
