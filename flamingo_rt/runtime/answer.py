"""The answer of one row while it grows: text that can be streamed, and the rule that ends it."""

from __future__ import annotations

import math
from copy import copy

from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.runtime.generation_options import GenerationOptions, StopReason

UNFINISHED_CHARACTER = "\ufffd"  # what a decoder shows for bytes that are not yet a whole character
# Tokens that are decoded again with a new one: enough that the first of them rarely begins within a character.
TAIL_TOKENS = 8


class Answer:
    """Takes tokens one by one. ``limit`` is the number after which the row must end, for ``limit_reason``."""

    def __init__(
        self, tokenizer: TextTokenizer, options: GenerationOptions, limit: int, limit_reason: StopReason
    ) -> None:
        self._tokenizer, self._stop = tokenizer, options.stop
        self._limit, self._limit_reason = limit, limit_reason
        self._start = 0  # of the tail, the tokens that are decoded
        self._given = 0  # characters of the tail's text that have been given out
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.text = ""  # what has been given out
        self.stop_reason: StopReason | None = None
        self._stop_logprob = 0.0  # of the token that ended it

    @property
    def probability(self) -> float:
        """Of the tokens so far, and of the stop token that ended them, under the model: 0 to 1."""
        return math.exp(min(0.0, math.fsum(self.logprobs) + self._stop_logprob))

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end it."""
        return self._tokenizer.stop_ids

    @property
    def room(self) -> int:
        """How many tokens it may still take."""
        return self._limit - len(self.tokens)

    def fork(self) -> Answer:
        """A copy that grows on its own."""
        other = copy(self)
        other.tokens, other.logprobs = self.tokens.copy(), self.logprobs.copy()
        return other

    def push(self, token: int, logprob: float) -> str:
        """Take the next token; returns the text that is now certain, possibly empty. Nothing more after the end."""
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
        """The text that has not been given out: what decoding all tokens would give behind ``text``."""
        tail = self._tokenizer.decode(self.tokens[self._start :])
        held = tail[self._given :]
        if len(self.tokens) - self._start >= 2 * TAIL_TOKENS:
            self._shorten_tail(tail, held)
        return held

    def _shorten_tail(self, tail: str, held: str) -> None:
        """Leave the first tokens of the tail out, unless that changes the text of the others.

        A tail that begins with a whole character begins where one does. It must begin with a character that was given
        out: some tokenizers drop a space that comes first.
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
        kept = 0  # of the whole characters: the unfinished one may turn out to continue a stop text
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(whole)), kept, -1):
                if whole.endswith(stop[:length]):
                    kept = length
                    break
        return len(held) - len(whole) + kept
