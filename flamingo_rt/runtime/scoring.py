"""The log-likelihood of closed answers after a prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from flamingo_rt.runtime.decoder import Decoder
from flamingo_rt.runtime.sampling import log_softmax


def choice_logprobs(decoder: Decoder, logits: np.ndarray, choices: Sequence[np.ndarray]) -> list[float]:
    """The sum of the log-probabilities of each choice's tokens, int64 [T]; ``logits`` [vocab] are those after the
    prompt, the only row. The decoder is left as it was."""
    first = log_softmax(logits)
    return [float(first[tokens[0]]) + _later_logprob(decoder, tokens) for tokens in choices]


def total_probability(choices: Sequence[np.ndarray], logprobs: Sequence[float]) -> float:
    """Of an answer that begins with any of the choices, int64 [T] each, with these log-probabilities: 0 to 1. One that
    begins with another one is part of that one's."""
    kept: dict[tuple[int, ...], float] = {}
    for tokens, logprob in sorted(zip((tuple(ids.tolist()) for ids in choices), logprobs, strict=True)):
        if not any(tokens[: len(shorter)] == shorter for shorter in kept):  # sorted: the shorter ones come first
            kept[tokens] = logprob
    return min(1.0, math.fsum(math.exp(logprob) for logprob in kept.values()))


def _later_logprob(decoder: Decoder, tokens: np.ndarray) -> float:
    """Of the tokens behind the first."""
    if len(tokens) == 1:
        return 0.0
    length = int(decoder.lengths[0])
    later = log_softmax(decoder.extend(tokens[:-1]))
    decoder.rewind(length)
    return float(later[np.arange(len(tokens) - 1), tokens[1:]].sum())
