"""The answer of one row while it grows: text that can be streamed, and the rule that ends it."""

from __future__ import annotations

from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.runtime.options import GenerationOptions, StopReason

UNFINISHED_CHARACTER = "\ufffd"  # what a decoder shows for bytes that are not yet a whole character


class Answer:
    """Takes tokens one by one. ``limit`` is the number after which the row must end, for ``limit_reason``."""

    def __init__(
        self, tokenizer: TextTokenizer, options: GenerationOptions, limit: int, limit_reason: StopReason
    ) -> None:
        self._tokenizer, self._stop = tokenizer, options.stop
        self._limit, self._limit_reason = limit, limit_reason
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.text = ""  # what has been given out
        self.stop_reason: StopReason | None = None

    def push(self, token: int, logprob: float) -> str:
        """Take the next token; returns the text that is now certain, possibly empty. Nothing more after the end."""
        if self.stop_reason is not None:
            return ""
        if token in self._tokenizer.stop_ids:
            self.stop_reason = "end_of_chunk"
            return self._give(self._tokenizer.decode(self.tokens))
        self.tokens.append(token)
        self.logprobs.append(logprob)
        full = self._tokenizer.decode(self.tokens)
        ends = [full.find(stop) for stop in self._stop if stop in full]
        if ends:
            self.stop_reason = "stop_string"
            return self._give(full[: min(ends)])
        if len(self.tokens) >= self._limit:
            self.stop_reason = self._limit_reason
            return self._give(full)
        return self._give(full[: len(full) - self._uncertain(full)])

    def _give(self, text: str) -> str:
        piece = text[len(self.text) :]
        self.text += piece
        return piece

    def _uncertain(self, full: str) -> int:
        """Characters at the end that later tokens may still change: part of a character, the start of a stop text."""
        whole = full.rstrip(UNFINISHED_CHARACTER)
        held = 0  # of the whole characters: the unfinished one may turn out to continue a stop text
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(whole)), held, -1):
                if whole.endswith(stop[:length]):
                    held = length
                    break
        return len(full) - len(whole) + held
