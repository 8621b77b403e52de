"""The decode loop, written once over any backend: from prompts to streamed answers. Whole answers consume the stream;
beam search yields each answer whole."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from flamingo_rt.runtime.answer import Answer
from flamingo_rt.runtime.beams import BeamSearch, search
from flamingo_rt.runtime.decoder import Decoder, Row
from flamingo_rt.runtime.generation_options import SPECULATION, GenerationOptions, GenerationResult
from flamingo_rt.runtime.sampling import Sampler, check_choice
from flamingo_rt.runtime.speculation import DraftLength, PromptLookup, speculate
from flamingo_rt.runtime.timing import Counts, StageTimer
from flamingo_rt.step_costs import StepCosts

Choice = tuple[int, float]  # a token and its log-probability
OpenDecoder = Callable[[], AbstractContextManager[Decoder]]  # closes the decoder, and its cache, after the block


@dataclass
class GrowingRow:
    """A row of a batch: ``ids`` int64 [T] are all tokens of its prompt, ``answer`` grows after them.
    ``usual_probability`` is a probability that answers to such prompts usually reach, None where none is known."""

    ids: np.ndarray
    answer: Answer
    counts: Counts = field(default_factory=Counts)
    usual_probability: float | None = None

    @property
    def unlike_validation(self) -> bool | None:
        """Whether the finished answer is less likely than usual; None where that cannot be said. A cut answer would
        have become no likelier than its beginning, so only "less likely" can be said of it."""
        if self.usual_probability is None:
            return None
        below = self.answer.probability < self.usual_probability
        return below if below or self.answer.stop_reason == "end_of_chunk" else None


class BatchGeneration:
    """Rows that grow together: iterating runs the loop and yields every row's new text."""

    def __init__(self, pieces: Generator[list[str]], rows: Sequence[GrowingRow], timer: StageTimer) -> None:
        """``pieces`` is the loop that grows ``rows``."""
        self._pieces, self._rows, self._timer = pieces, rows, timer

    def __iter__(self) -> Iterator[list[str]]:
        return self._pieces

    def close(self) -> None:
        """Stop, and close the decoder with its cache. Without this call, that happens after the last token, or when
        this object is collected."""
        self._pieces.close()

    def results(self) -> list[GenerationResult]:
        """Run to the end; one result for each row."""
        for _ in self._pieces:
            pass
        return [
            GenerationResult(
                row.answer.text, tuple(row.answer.tokens), tuple(row.answer.logprobs),
                row.answer.stop_reason or "max_new_tokens", len(row.ids), dict(self._timer.milliseconds),
                row.counts.steps, row.counts.drafted, row.counts.accepted, row.answer.probability,
                row.unlike_validation,
            )
            for row in self._rows
        ]


class Generation:
    """One answer, streamed: iterate for pieces of text, then `result`."""

    def __init__(self, batch: BatchGeneration) -> None:
        self._batch = batch

    def __iter__(self) -> Iterator[str]:
        return (pieces[0] for pieces in self._batch if pieces[0])

    def close(self) -> None:
        """Stop, and close the cache now instead of when this object is collected."""
        self._batch.close()

    def result(self) -> GenerationResult:
        """The finished answer; runs the loop to its end."""
        return self._batch.results()[0]


def decode_rows(
    open_decoder: OpenDecoder, prompts: Sequence[Row], rows: Sequence[GrowingRow], options: GenerationOptions,
    costs: StepCosts, timer: StageTimer,
) -> Generator[list[str]]:
    """Read the prompts, then grow their answers together, greedily or drawn; yields the new texts of each step.

    ``costs`` are those of steps of several tokens, for one row that guesses ahead. The decoder is opened by the first
    step, and closed when the answers end, fail or are closed: an answer that nobody iterates over has no cache.
    """
    with open_decoder() as decoder:
        with timer.stage("prefill"):
            logits = decoder.prefill(prompts)
        with closing(_pieces(decoder, logits, rows, options, costs, timer)) as pieces:
            yield from pieces


def _pieces(
    decoder: Decoder, logits: np.ndarray, rows: Sequence[GrowingRow], options: GenerationOptions, costs: StepCosts,
    timer: StageTimer,
) -> Generator[list[str]]:
    """Grow the answers from the ``logits`` float32 [B, vocab] of the prompts, in the way that the options ask for."""
    samplers = [Sampler(options, logits.shape[-1], row.ids, index) for index, row in enumerate(rows)]
    most = _guesses(options, decoder, len(rows))
    if most:
        (row,) = rows
        lookup = PromptLookup(row.ids.tolist(), row.answer.stop_ids)
        length = DraftLength(most, costs)
        for piece in speculate(decoder, logits[0], row.answer, samplers[0], lookup, length, timer, row.counts):
            yield [piece]
        return
    first = [sampler.choose(row) for sampler, row in zip(samplers, logits, strict=True)]
    if options.temperature == 0.0 and options.repetition_penalty == 1.0:
        yield from _greedily(decoder, first, rows, timer)
    else:
        yield from _step_by_step(decoder, first, rows, samplers, timer)


def _guesses(options: GenerationOptions, decoder: Decoder, rows: int) -> int:
    """The largest number of tokens to guess in a step."""
    if rows > 1 or options.temperature > 0.0:
        return 0
    if options.speculation is None:
        return 0 if decoder.runs_ahead else SPECULATION
    return options.speculation


def search_rows(
    open_decoder: OpenDecoder, prompts: Sequence[Row], rows: Sequence[GrowingRow], options: GenerationOptions,
    timer: StageTimer,
) -> Generator[list[str]]:
    """Search the answers one prompt after the other, each with a decoder of one row; yields each text whole."""
    for prompt, row in zip(prompts, rows, strict=True):
        with open_decoder() as decoder:
            with timer.stage("prefill"):
                logits = decoder.prefill([prompt])
            beams = BeamSearch(options, row.answer, row.ids, logits.shape[-1])
            row.answer = search(decoder, logits, beams, options.beams, timer, row.counts)
        yield [row.answer.text if each is row else "" for each in rows]


def _step_by_step(
    decoder: Decoder, first: Sequence[Choice], rows: Sequence[GrowingRow], samplers: Sequence[Sampler],
    timer: StageTimer,
) -> Iterator[list[str]]:
    """Take one token for every unfinished row in each step, chosen from the logits; ``first`` are the tokens after the
    prompts."""
    choices = list(first)
    yield _pushed(rows, choices)
    while _unfinished(rows):
        with timer.stage("decode"):
            logits = decoder.step(np.array([token for token, _ in choices], dtype=np.int64))
        for index, (row, sampler) in enumerate(zip(rows, samplers, strict=True)):
            if row.answer.stop_reason is None:
                choices[index] = sampler.choose(logits[index])
        yield _counted(rows, choices)


def _greedily(
    decoder: Decoder, first: Sequence[Choice], rows: Sequence[GrowingRow], timer: StageTimer
) -> Iterator[list[str]]:
    """`_step_by_step` for greedy rows, whose tokens are chosen by the language model's graph."""
    yield _pushed(rows, first)
    most = max(row.answer.room for row in rows if row.answer.stop_reason is None) if _unfinished(rows) else 0
    tokens = np.array([token for token, _ in first], dtype=np.int64)
    steps = cast("Generator[tuple[np.ndarray, np.ndarray], None, None]", decoder.step_greedily(tokens, most))
    with closing(steps):
        while _unfinished(rows):
            with timer.stage("decode"):
                tokens, logprobs = next(steps)
            for row, logprob in zip(rows, logprobs.tolist(), strict=True):
                if row.answer.stop_reason is None:
                    check_choice(logprob)
            yield _counted(rows, list(zip(tokens.tolist(), logprobs.tolist(), strict=True)))


def _unfinished(rows: Sequence[GrowingRow]) -> bool:
    return any(row.answer.stop_reason is None for row in rows)


def _counted(rows: Sequence[GrowingRow], choices: Sequence[Choice]) -> list[str]:
    """`_pushed`, after counting one step for every row."""
    for row in rows:
        row.counts.steps += 1
    return _pushed(rows, choices)


def _pushed(rows: Sequence[GrowingRow], choices: Sequence[Choice]) -> list[str]:
    """Give each row its token; returns their new texts. A row that has ended takes nothing."""
    return [row.answer.push(*choice) for row, choice in zip(rows, choices, strict=True)]
