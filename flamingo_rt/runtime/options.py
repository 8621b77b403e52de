"""What a caller can ask of a generation, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

from flamingo_rt.errors import UsageError

StopReason = Literal["end_of_chunk", "stop_string", "max_new_tokens", "context"]


@dataclass(frozen=True)
class GenerationOptions:
    """How tokens are chosen and when to stop. ``temperature`` 0 is greedy; then ``top_k``, ``top_p`` and ``seed`` have
    no effect. ``repetition_penalty`` divides the positive logits of tokens already in the row (arXiv 1909.05858, §4.1).

    Raises `UsageError` for a value out of range.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "top_k", "seed"):
            if not isinstance(getattr(self, name), Integral):
                raise UsageError(f"{name} is {getattr(self, name)!r}; it must be an integer")
        for name in ("temperature", "top_p", "repetition_penalty"):
            if not isinstance(getattr(self, name), Real):
                raise UsageError(f"{name} is {getattr(self, name)!r}; it must be a number")
        checks = {
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "temperature": (0.0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            "repetition_penalty": (0.01 <= self.repetition_penalty <= 100.0, "from 0.01 to 100; 1 is off"),
            "seed": (self.seed >= 0, "0 or more"),
            "stop": (
                isinstance(self.stop, (tuple, list)) and all(isinstance(text, str) and text for text in self.stop),
                "a tuple of texts that are not empty",
            ),
        }
        for name, (valid, allowed) in checks.items():
            if not valid:
                raise UsageError(f"{name} is {getattr(self, name)!r}; it must be {allowed}")


@dataclass(frozen=True)
class GenerationResult:
    """One finished answer. ``tokens`` are without the stop token; ``logprobs`` are of the model, before temperature
    and penalties, one for each token. ``timings`` in milliseconds: images, vision, resampler, prefill, decode.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: StopReason
    prompt_tokens: int
    timings: dict[str, float]


@dataclass(frozen=True)
class Score:
    """One candidate answer: the sum of its tokens' log-probabilities, and its share among the candidates.

    ``timings`` in milliseconds are of the whole call: images, vision, resampler, prefill, choices.
    """

    text: str
    logprob: float
    probability: float
    tokens: tuple[int, ...]
    timings: dict[str, float]
