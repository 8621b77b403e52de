"""Options of a measurement, checked when they are made and then against the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Integral, Real

from flamingo_rt.bench.workload import caption_tokens
from flamingo_rt.cores import check_threads
from flamingo_rt.errors import UsageError
from flamingo_rt.runtime.model import Model

SHOTS, CONTEXTS = (0, 4, 8, 16, 32), (64, 1500)
MOST = 100_000  # of anything; more is a typing error
MOST_SECONDS = 10_000_000


@dataclass(frozen=True)
class BenchOptions:
    """``shots``: examples before the query. ``context``: tokens in the cache at which decoding is timed, for the first
    ``batch``; the other batches are timed at the first context. ``tokens``: decode steps of a run. Each measurement
    has ``warmup`` runs that do not count, then ``runs``, or fewer once those have taken ``seconds`` (at least one).
    ``threads`` and ``spin`` are what the model was loaded with. None for shots or context: the defaults, as far as they
    fit the model.

    Raises `UsageError` for a value out of range.
    """

    shots: tuple[int, ...] | None = None
    batch: tuple[int, ...] = (1, 2, 4)
    context: tuple[int, ...] | None = None
    tokens: int = 32
    runs: int = 5
    warmup: int = 1
    seconds: float = 60.0
    threads: int | None = None
    spin: bool = True

    def __post_init__(self) -> None:
        for name, least, most in (("shots", 0, MOST), ("batch", 1, 1024), ("context", 1, MOST)):
            values = getattr(self, name)
            if values is None and name != "batch":
                continue
            if not isinstance(values, (tuple, list)) or not values:
                raise UsageError(f"{name} is {values!r}; it must hold one or more integers, such as (1, 2)")
            for value in values:
                _check(name, value, least, most)
            object.__setattr__(self, name, tuple(dict.fromkeys(values)))
        for name, least in (("tokens", 1), ("runs", 1), ("warmup", 0)):
            _check(name, getattr(self, name), least, MOST)
        check_threads(self.threads)
        if not isinstance(self.seconds, Real) or not 0 < self.seconds <= MOST_SECONDS:
            raise UsageError(f"seconds is {self.seconds!r}; it must be a number above 0, up to {MOST_SECONDS:,}")

    def for_model(self, model: Model) -> BenchOptions:
        """Fill in every default. Raises `UsageError` for what does not fit the model."""
        return replace(self, shots=self._shots(model), context=self._context(model))

    def _shots(self, model: Model) -> tuple[int, ...]:
        """Numbers of shots to measure. Raises `UsageError` when the query or shots that were asked for do not fit."""
        fitting = []
        for count in SHOTS if self.shots is None else (0, *self.shots):
            problem = _problem(model, count)
            if problem is None:
                fitting.append(count)
            elif self.shots is not None or not count:
                raise UsageError(f"{count} shots cannot be measured: {problem}")
        return tuple(fitting) if self.shots is None else self.shots

    def _context(self, model: Model) -> tuple[int, ...]:
        limit = model.config.language.context
        most = limit - self.tokens
        if most < 1:
            raise UsageError(f"tokens is {self.tokens}: the model's context is {limit}; give {limit - 1} or fewer")
        if self.context is None:
            return tuple(dict.fromkeys(min(context, most) for context in CONTEXTS))
        for context in self.context:
            if context > most:
                raise UsageError(
                    f"context {context} and {self.tokens} decode steps need {context + self.tokens} tokens, this "
                    f"model's context is {limit}: give a context of at most {most}"
                )
        return self.context


def _problem(model: Model, shots: int) -> str | None:
    """The reason why a prompt with ``shots`` examples and the query does not fit the model; None when it does."""
    pictures, context = model.config.max_visuals, model.config.language.context
    if shots >= pictures:
        return f"the model takes {pictures} pictures in a prompt, one of them the query's; give {pictures - 1} or fewer"
    tokens = caption_tokens(model, shots)
    if tokens >= context:
        return f"the prompt has {tokens} tokens, the model's context is {context} and holds the answer too; give fewer"
    return None


def _check(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or not least <= int(value) <= most:
        raise UsageError(f"{name} holds {value!r}; it must be an integer from {least} to {most}")
