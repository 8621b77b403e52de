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
from flamingo_rt.contract import LANGUAGE_MODEL, LOGITS, RESAMPLER, GraphSpec, cached_head_width
from flamingo_rt.errors import DataError
from flamingo_rt.system_memory import available_bytes, readable_bytes


@dataclass(frozen=True)
class Prefill:
    """A prefill of ``tokens`` new tokens a row, padding included, after ``cached`` ones; all rows ``together``, or one
    row at a time."""

    config: FlamingoConfig
    tokens: int
    cached: int = 0
    together: bool = True

    def bytes(self, rows: int, capacity: int) -> int:
        """Bytes computed for ``rows`` rows; ``capacity`` bounds the tokens of a row."""
        tokens, total = min(self.tokens, capacity), min(self.cached + self.tokens, capacity)
        return prefill_bytes(self.config, rows if self.together else 1, tokens, total)


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
        computed = prefill.bytes(rows, capacity) if prefill else 0
        return needed_bytes(specs, rows, capacity, visuals) + computed

    available = available_bytes() if on_device is None else on_device
    if available is None or needed(rows, capacity) <= available:
        return
    fitting = _most(rows, lambda count: needed(count, capacity) <= available)
    if fitting:
        remedy = f"{fitting} of these {kind} would fit: ask for no more at a time"
    else:
        tokens = _most(capacity, lambda count: needed(1, count) <= available)
        remedy = f"{tokens:,} tokens would fit: use fewer shots, a smaller max_new_tokens or a smaller model"
    batch = f"{rows} {kind}" if rows > 1 else "one row"
    parts = "cache, pictures and reading the prompt take" if prefill else "cache and pictures take"
    raise DataError(
        f"{batch} of {capacity:,} tokens cannot be kept in memory{place}: {parts} "
        f"{readable_bytes(needed(rows, capacity))}, {readable_bytes(available)} are available; {remedy}"
    )


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number below ``limit`` that fits, 0 if none does; every number below one that fits must fit too."""
    return max(0, bisect_left(range(1, limit), True, key=lambda count: not fits(count)))


def prefill_bytes(config: FlamingoConfig, rows: int, tokens: int, total: int) -> int:
    """Bytes of the language model's activations for ``tokens`` new tokens a row (``total`` with those before them), in
    float32: what is alive at once in its largest layer, as ONNX Runtime runs it.

    Per token: the residual stream, its norm and a layer's result (3 * width), and either the attention's queries, keys
    and values (merged, split and transposed: 3 times) or a feed-forward's inner vectors (before and after the
    activation: 2; gated and split: 7). Per pair of tokens: attention scores are computed in pieces, but position biases
    are whole. ALiBi: a number a head (4 bytes), and the distances as int64 and float32. Relative positions: products,
    scaled, indices (int64) and gathered, 20 bytes a head, and the distances three times as int64.
    """
    language, cross = config.language, config.cross_attention
    attention = 3 * (language.heads + 2 * language.kv_heads) * cached_head_width(language)
    feed_forward = (7 if language.activation == "swiglu" else 2) * language.ff_width
    gated = 2 * max(cross.ff_multiplier * language.width, cross.heads * cross.head_width)
    vectors = 4 * (3 * language.width + max(attention, feed_forward, gated))
    pairs = {"alibi": 4 * language.heads + 12, "relative": 20 * language.heads + 24}.get(language.positions, 0)
    return rows * tokens * (vectors + total * pairs)


def needed_bytes(specs: dict[str, GraphSpec], rows: int, capacity: int, visuals: int) -> int:
    """Bytes of the language model's inputs and outputs: the cache, media and logits of a batch."""
    spec, latents = specs[LANGUAGE_MODEL], specs[RESAMPLER].outputs[0].resolve({"M": 1})[2]
    sizes = {"B": rows, "C": capacity, "T": capacity, "S": max(1, visuals) * latents, "K": 1}
    tensors = (*spec.inputs, spec.output(LOGITS))  # other outputs are small, or written over an input
    return sum(math.prod(tensor.resolve(sizes)) * np.dtype(tensor.array_dtype).itemsize for tensor in tensors)
