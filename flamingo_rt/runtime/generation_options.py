"""The options of a generation and its results."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Literal

from flamingo_rt.errors import UsageError

MOST, MOST_SEED, MOST_TEMPERATURE = 2**31 - 1, 2**63 - 1, 1e12  # more is a typing error
SPECULATION = 7  # default number of tokens guessed ahead

StopReason = Literal["end_of_chunk", "stop_string", "max_new_tokens", "context"]


@dataclass(frozen=True)
class GenerationOptions:
    """Options of a generation: the choice of tokens and the end of the answer.

    ``temperature`` 0 is greedy; then ``top_k``, ``top_p`` and ``seed`` have no effect. ``repetition_penalty`` divides
    the positive logits of tokens already in the row, and multiplies negative ones (arXiv 1909.05858, §4.1).

    ``beams`` above 1 is beam search by the rules of `flamingo_rt.runtime.beams`; among finished answers it takes the
    one with the largest sum of log-probabilities / tokens ** ``length_penalty``: above 0 favours longer answers.

    ``speculation`` is the largest number of tokens guessed ahead in one step, 0 for none. It changes the time of a
    greedy answer, not its tokens, and applies to one row at a time (`flamingo_rt.runtime.speculation`). None is
    `SPECULATION` on backends that finish each step before the next, and 0 on GPUs, where steps begin before the tokens
    of the steps before them are known: guesses would have to wait for those tokens. The same input gives the same
    tokens and log-probabilities, bit for bit, on one backend with one number of threads; between thread counts nothing
    is promised.

    Raises `UsageError` for a value out of range, and for beams with a temperature.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    beams: int = 1
    length_penalty: float = 1.0
    speculation: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "top_k", "seed", "beams", "speculation"):
            value = getattr(self, name)
            if not isinstance(value, Integral) and not (name == "speculation" and value is None):
                raise UsageError(f"{name} is {value!r}; it must be an integer")
        for name in ("temperature", "top_p", "repetition_penalty", "length_penalty"):
            if not isinstance(getattr(self, name), Real):
                raise UsageError(f"{name} is {getattr(self, name)!r}; it must be a number")
        checks = {
            "max_new_tokens": (1 <= self.max_new_tokens <= MOST, f"from 1 to {MOST}"),
            "temperature": (
                0.0 <= self.temperature <= MOST_TEMPERATURE, f"0 (greedy) or more, up to {MOST_TEMPERATURE:g}"
            ),
            "top_k": (0 <= self.top_k <= MOST, f"from 0 (off) to {MOST}"),
            "top_p": (0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            "repetition_penalty": (0.01 <= self.repetition_penalty <= 100.0, "from 0.01 to 100; 1 is off"),
            "seed": (0 <= self.seed <= MOST_SEED, f"from 0 to {MOST_SEED}"),
            "stop": (
                isinstance(self.stop, (tuple, list)) and all(isinstance(text, str) and text for text in self.stop),
                "a tuple of texts that are not empty",
            ),
            "beams": (1 <= self.beams <= 64, "from 1 (no search) to 64"),
            "length_penalty": (-10.0 <= self.length_penalty <= 10.0, "from -10 to 10"),
            "speculation": (self.speculation is None or 0 <= self.speculation <= 31, "from 0 (off) to 31"),
        }
        for name, (valid, allowed) in checks.items():
            if not valid:
                raise UsageError(f"{name} is {getattr(self, name)!r}; it must be {allowed}")
        if self.beams > 1 and self.temperature > 0.0:
            raise UsageError(
                f"beams is {self.beams} and temperature {self.temperature}: beam search draws nothing; leave one out"
            )


def options_with(options: GenerationOptions | None, changes: dict[str, Any]) -> GenerationOptions:
    """The options (None: the defaults) with some fields changed. Raises `UsageError` for an unknown field."""
    known = [field.name for field in fields(GenerationOptions)]
    for name in changes:
        if name not in known:
            raise UsageError(f"unknown generation option {name!r}; known: {', '.join(known)}")
    return replace(options or GenerationOptions(), **changes)


@dataclass(frozen=True)
class GenerationResult:
    """One finished answer. ``tokens`` exclude the stop token; ``logprobs``, one for each token, are those of the model
    before temperature and penalties. ``timings`` in milliseconds: images, vision, resampler, prefill, decode.

    ``probability`` is the model's probability of the whole answer, stop token included: 0 to 1. ``unlike_validation``
    says whether it is below the probability that 95% of the model's captions reach on pictures of its own kind, as its
    bundle records it: then the picture is likely of a kind the model does not know. None where that cannot be said: the
    bundle records nothing, the prompt has shots or a prefix, the answer is not a caption, was drawn or penalised, or
    was cut before it fell below.

    ``steps`` counts the runs of the language model after the prefill, shared by all rows that run together. Speculation
    guessed ``drafted`` tokens, and the model chose ``accepted`` of them.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: StopReason
    prompt_tokens: int
    timings: dict[str, float]
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    probability: float = 1.0
    unlike_validation: bool | None = None


@dataclass(frozen=True)
class Score:
    """One candidate answer. ``logprob`` is the sum of its tokens' log-probabilities, ``probability`` its share among
    the candidates.

    ``total_probability``, equal in all scores of a call, is the model's probability of an answer that begins with any
    of the candidates: where it is close to zero, their order means little.

    ``timings`` in milliseconds are of the whole call: images, vision, resampler, prefill, choices.
    """

    text: str
    logprob: float
    probability: float
    tokens: tuple[int, ...]
    timings: dict[str, float]
    total_probability: float

    @property
    def logprob_per_token(self) -> float:
        """The mean log-probability of the tokens, by which normalized scores are ranked."""
        return self.logprob / len(self.tokens)
