"""One row's answer while it grows: text that can be streamed, and the rule that ends it."""

from __future__ import annotations

import math
from copy import copy

from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.runtime.generation_options import GenerationOptions, StopReason

UNFINISHED_CHARACTER = "\ufffd"  # decoders show it for bytes that are not yet a whole character
# Tokens decoded again with each new one: enough that the first of them rarely begins within a character.
TAIL_TOKENS = 8


class Answer:
    """Takes tokens one by one. ``limit`` is the number of tokens after which the row ends, with ``limit_reason``."""

    def __init__(
        self, tokenizer: TextTokenizer, options: GenerationOptions, limit: int, limit_reason: StopReason
    ) -> None:
        self._tokenizer, self._stop = tokenizer, options.stop
        self._limit, self._limit_reason = limit, limit_reason
        self._start = 0  # first token of the tail, the tokens that are decoded
        self._given = 0  # characters of the tail's text that have been given out
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.text = ""  # text that has been given out
        self.stop_reason: StopReason | None = None
        self._stop_logprob = 0.0  # log-probability of the stop token

    @property
    def probability(self) -> float:
        """The model's probability of the tokens so far, stop token included: 0 to 1."""
        return math.exp(min(0.0, math.fsum(self.logprobs) + self._stop_logprob))

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end the answer."""
        return self._tokenizer.stop_ids

    @property
    def room(self) -> int:
        """The number of tokens that may still be added."""
        return self._limit - len(self.tokens)

    def fork(self) -> Answer:
        """A copy that grows on its own."""
        other = copy(self)
        other.tokens, other.logprobs = self.tokens.copy(), self.logprobs.copy()
        return other

    def push(self, token: int, logprob: float) -> str:
        """Take the next token; returns the text that is now certain, possibly empty. Takes nothing after the end."""
        if self.stop_reason is not None:
            return ""
        if token in self._tokenizer.stop_ids:
            self.stop_reason, self._stop_logprob = "end_of_chunk", logprob
            return self._give(self._held())
        self.tokens.append(token)
        self.logprobs.append(logprob)
        held = self._held()
        ends = [held.find(stop) for stop in self._stop if stop in held]
        if ends:
            self.stop_reason = "stop_string"
            return self._give(held[: min(ends)])
        if len(self.tokens) >= self._limit:
            self.stop_reason = self._limit_reason
            return self._give(held)
        return self._give(held[: len(held) - self._uncertain(held)])

    def _held(self) -> str:
        """The text that has not been given out: decoding all tokens would give it after ``text``."""
        tail = self._tokenizer.decode(self.tokens[self._start :])
        held = tail[self._given :]
        if len(self.tokens) - self._start >= 2 * TAIL_TOKENS:
            self._shorten_tail(tail, held)
        return held

    def _shorten_tail(self, tail: str, held: str) -> None:
        """Drop the first tokens of the tail, unless that changes the text of the others.

        A tail whose text begins with a whole character begins at a character's boundary. That character must have been
        given out: some tokenizers drop a leading space.
        """
        start = len(self.tokens) - TAIL_TOKENS
        text = self._tokenizer.decode(self.tokens[start:])
        whole = bool(text) and text[0] != UNFINISHED_CHARACTER
        if whole and tail.endswith(text) and len(text) > len(held):
            self._start, self._given = start, len(text) - len(held)

    def _give(self, text: str) -> str:
        self._given += len(text)
        self.text += text
        return text

    def _uncertain(self, held: str) -> int:
        """Characters at the end that later tokens may still change: part of a character, the start of a stop text."""
        whole = held.rstrip(UNFINISHED_CHARACTER)
        kept = 0  # whole characters to hold: an unfinished one may turn out to continue a stop text
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(whole)), kept, -1):
                if whole.endswith(stop[:length]):
                    kept = length
                    break
        return len(held) - len(whole) + kept
