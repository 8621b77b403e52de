"""The memory a batch needs, computed before it is allocated: a refusal instead of a killed process.

Where the available memory is not known, nothing is refused.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flamingo_rt.backend import Backend
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import LANGUAGE_MODEL, LOGITS, RESAMPLER, GraphSpec
from flamingo_rt.errors import DataError
from flamingo_rt.runtime.activation_memory import prefill_bytes
from flamingo_rt.system_memory import available_bytes, readable_bytes


@dataclass(frozen=True)
class Prefill:
    """A prefill of ``tokens`` new tokens a row, padding included, after ``cached`` ones; all rows ``together``, or one
    row at a time."""

    config: FlamingoConfig
    tokens: int
    cached: int = 0
    together: bool = True

    def bytes(self, rows: int, capacity: int, visuals: int) -> int:
        """Bytes computed for ``rows`` rows of at most ``visuals`` visuals; ``capacity`` bounds the tokens of a row."""
        tokens, total = min(self.tokens, capacity), min(self.cached + self.tokens, capacity)
        return prefill_bytes(self.config, rows if self.together else 1, tokens, total, visuals)


def check_memory(
    backend: Backend, rows: int, capacity: int, visuals: int, kind: str = "rows", prefill: Prefill | None = None,
) -> None:
    """Raise `DataError` when ``rows`` rows of ``capacity`` tokens and at most ``visuals`` visuals each, and their
    ``prefill``, need more memory than is available where the ``backend`` computes. The message says how many would fit.
    ``kind`` is the caller's word for the rows: rows or beams.

    On a device the prefill is not counted: runtimes reserve memory for it beforehand, of unknown size, and raise an
    error of their own when it is not enough."""
    on_device = backend.available_bytes()
    specs, place = backend.specs, "" if on_device is None else " on the GPU"
    if on_device is not None:
        prefill = None

    def needed(rows: int, capacity: int) -> int:
        computed = prefill.bytes(rows, capacity, visuals) if prefill else 0
        return needed_bytes(specs, rows, capacity, visuals) + computed

    available = available_bytes() if on_device is None else on_device
    if available is None or needed(rows, capacity) <= available:
        return
    fitting = most_that_fit(rows - 1, lambda count: needed(count, capacity) <= available)
    if fitting:
        remedy = f"{fitting} of these {kind} would fit: ask for no more at a time"
    else:
        tokens = most_that_fit(capacity - 1, lambda count: needed(1, count) <= available)
        remedy = f"{tokens:,} tokens would fit: use fewer shots, a smaller max_new_tokens or a smaller model"
    batch = f"{rows} {kind}" if rows > 1 else "one row"
    parts = "cache, pictures and reading the prompt take" if prefill else "cache and pictures take"
    raise DataError(
        f"{batch} of {capacity:,} tokens cannot be kept in memory{place}: {parts} "
        f"{readable_bytes(needed(rows, capacity))}, {readable_bytes(available)} are available; {remedy}"
    )


def most_that_fit(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``limit`` that fits, 0 if none does; every number below one that fits must fit too."""
    return bisect_left(range(1, limit + 1), True, key=lambda count: not fits(count))


def needed_bytes(specs: dict[str, GraphSpec], rows: int, capacity: int, visuals: int) -> int:
    """Bytes of the language model's inputs and outputs: the cache, media and logits of a batch."""
    spec, latents = specs[LANGUAGE_MODEL], specs[RESAMPLER].outputs[0].resolve({"M": 1})[2]
    sizes = {"B": rows, "C": capacity, "T": capacity, "S": max(1, visuals) * latents, "K": 1}
    tensors = (*spec.inputs, spec.output(LOGITS))  # other outputs are small, or written over an input
    return sum(math.prod(tensor.resolve(sizes)) * np.dtype(tensor.array_dtype).itemsize for tensor in tensors)
