"""Closed answers: each choice's log-likelihood as the continuation of a prompt, and their ranking."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from flamingo_rt.errors import UsageError
from flamingo_rt.processing.prompt import Part, continuation_ids
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.runtime.decoder import Decoder
from flamingo_rt.runtime.generation_options import Score
from flamingo_rt.runtime.sampling import log_softmax
from flamingo_rt.runtime.timing import StageTimer


def checked_choices(choices: Sequence[str], image_token: str) -> list[str]:
    """The choices as a list. Raises `UsageError` unless there is at least one, and each is a text that is not empty and
    does not hold ``image_token``."""
    listed = [] if isinstance(choices, str) else list(choices)
    if not listed or not all(isinstance(choice, str) and choice.strip() for choice in listed):
        shown = [choice if isinstance(choice, str) else type(choice).__name__ for choice in listed] or choices
        raise UsageError(f"choices are {shown!r}: give a list of one or more texts that are not empty")
    if any(image_token in choice for choice in listed):
        raise UsageError(f"a choice holds {image_token}: pictures belong in the prompt")
    return listed


def choice_tokens(
    parts: Part | Sequence[Part], choices: Sequence[str], tokenizer: TextTokenizer, separator: str, *, start: bool
) -> list[np.ndarray]:
    """Token ids int64 [T] of each choice as it continues the prompt; ``start`` as in `build_prompt`. The ``separator``
    is put between prompt and choice where neither has a space."""
    last = parts[-1] if isinstance(parts, Sequence) and not isinstance(parts, str) else parts
    between = "" if isinstance(last, str) and last[-1:].isspace() else separator
    texts = [choice if choice[0].isspace() else between + choice for choice in choices]
    return [continuation_ids(parts, text, tokenizer, start=start) for text in texts]


def score_choices(
    decoder: Decoder, logits: np.ndarray, choices: Sequence[str], tokens: Sequence[np.ndarray], normalize: bool,
    timer: StageTimer,
) -> list[Score]:
    """Rank the choices as continuations of the decoder's only row, best first. ``logits`` [vocab] are those after the
    row's prompt, ``tokens`` int64 [T] those of each choice. The decoder is left as it was.

    With ``normalize``, ranks and shares are by log-probability per token.
    """
    with timer.stage("choices"):
        first = log_softmax(logits)
        sums = [float(first[ids[0]]) + _later_logprob(decoder, ids) for ids in tokens]
    ranks = np.array(sums) / [len(ids) if normalize else 1 for ids in tokens]
    shares, total = np.exp(log_softmax(ranks)), _total_probability(tokens, sums)
    scores = [
        Score(choice, logprob, float(share), tuple(ids.tolist()), dict(timer.milliseconds), total)
        for choice, logprob, share, ids in zip(choices, sums, shares, tokens, strict=True)
    ]
    return [scores[index] for index in np.argsort(-ranks, kind="stable")]


def _later_logprob(decoder: Decoder, tokens: np.ndarray) -> float:
    """Sum of the log-probabilities of the tokens after the first; the decoder is left as it was."""
    if len(tokens) == 1:
        return 0.0
    length = int(decoder.lengths[0])
    later = log_softmax(decoder.extend(tokens[:-1]))
    decoder.rewind(length)
    return float(later[np.arange(len(tokens) - 1), tokens[1:]].sum())


def _total_probability(choices: Sequence[np.ndarray], logprobs: Sequence[float]) -> float:
    """Probability, 0 to 1, that an answer begins with any of the choices, int64 [T] each. A choice that begins with
    another one adds nothing to it."""
    kept: dict[tuple[int, ...], float] = {}
    for tokens, logprob in sorted(zip((tuple(ids.tolist()) for ids in choices), logprobs, strict=True)):
        if not any(tokens[: len(shorter)] == shorter for shorter in kept):  # sorted: the shorter ones come first
            kept[tokens] = logprob
    return min(1.0, math.fsum(math.exp(logprob) for logprob in kept.values()))
