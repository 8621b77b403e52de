"""The decode loop, written once over any engine. Streaming is the primitive; whole answers consume it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from flamingo_rt.runtime.answer import Answer
from flamingo_rt.runtime.decoder import Decoder
from flamingo_rt.runtime.options import GenerationResult
from flamingo_rt.runtime.sampling import Sampler
from flamingo_rt.runtime.timing import StageTimer


class BatchGeneration:
    """Rows that grow together: each iteration is one token for every unfinished row, and yields the new texts."""

    def __init__(
        self, decoder: Decoder, logits: np.ndarray, answers: Sequence[Answer], samplers: Sequence[Sampler],
        prompt_tokens: Sequence[int], timer: StageTimer,
    ) -> None:
        self._decoder, self._answers, self._samplers = decoder, answers, samplers
        self._prompt_tokens, self._timer = prompt_tokens, timer
        self._pieces = self._run(logits)

    def __iter__(self) -> Iterator[list[str]]:
        return self._pieces

    def results(self) -> list[GenerationResult]:
        """Run to the end; one result for each row."""
        for _ in self._pieces:
            pass
        return [
            GenerationResult(
                answer.text, tuple(answer.tokens), tuple(answer.logprobs), answer.stop_reason or "max_new_tokens",
                prompt_tokens, dict(self._timer.milliseconds),
            )
            for answer, prompt_tokens in zip(self._answers, self._prompt_tokens, strict=True)
        ]

    def _run(self, logits: np.ndarray) -> Iterator[list[str]]:
        tokens = np.zeros(len(self._answers), dtype=np.int64)
        while True:
            pieces = []
            for row, (answer, sampler) in enumerate(zip(self._answers, self._samplers, strict=True)):
                if answer.stop_reason is not None:
                    pieces.append("")
                    continue
                tokens[row], logprob = sampler.choose(logits[row])
                pieces.append(answer.push(int(tokens[row]), logprob))
            yield pieces
            if all(answer.stop_reason is not None for answer in self._answers):
                return
            with self._timer.stage("decode"):
                logits = self._decoder.step(tokens)


class Generation:
    """One answer, streamed: iterate for pieces of text, then `result`."""

    def __init__(self, batch: BatchGeneration) -> None:
        self._batch = batch

    def __iter__(self) -> Iterator[str]:
        return (pieces[0] for pieces in self._batch if pieces[0])

    def result(self) -> GenerationResult:
        """The finished answer; runs what has not been iterated."""
        return self._batch.results()[0]
