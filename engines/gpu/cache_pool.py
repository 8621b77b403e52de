"""The cache that an engine used last, with the steps that are bound to it, for the next answer of its size.

Answers are short: allocating a cache, binding a step to it and capturing that as a CUDA graph would be a good part of
each. One cache is kept, until one of another size is asked for, or memory for something else is short.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from flamingo_rt.engines.gpu.async_greedy import AsyncGreedySteps
from flamingo_rt.engines.gpu.device_cache import CacheBuffer, DeviceCache

Buffers = dict[str, CacheBuffer]

SLACK = 256  # tokens that a kept cache may have more room for: prompts differ by a few


@dataclass
class _Bound:
    """Buffers, and the steps that were bound to them last, with what else those were bound to."""

    buffers: Buffers
    steps: tuple[Hashable, AsyncGreedySteps] | None = None


class CachePool:
    """Of one engine. It holds what belongs to caches in use too, until they are gone."""

    def __init__(self) -> None:
        self._spare: _Bound | None = None
        self._in_use: dict[int, _Bound] = {}  # by the address of the first buffer

    @property
    def spare_bytes(self) -> int:
        """Device memory of the cache that nobody uses."""
        return sum(buffer.memory.bytes for buffer in self._spare.buffers.values()) if self._spare else 0

    def cache(self, rows: int, capacity: int, make: Callable[[Buffers | None], DeviceCache]) -> DeviceCache:
        """What ``make`` makes of the spare buffers, if they have ``rows`` rows and room for ``capacity`` tokens and
        not many more, or of None. When that cache is gone, its buffers are the spare ones, unless it was expanded."""
        bound, self._spare = self._spare, None
        if bound is not None and not _fit(bound.buffers, rows, capacity):
            bound = None  # freed before others are allocated
        cache = make(bound.buffers if bound else None)
        bound = bound or _Bound(cache.buffers())
        key = _key(bound.buffers)
        self._in_use[key] = bound
        cache.when_expanded = lambda: self._in_use.pop(key, None)  # so that its buffers can go one by one
        # Not when the interpreter ends: CUDA may be gone then.
        weakref.finalize(cache, self._put_back, key).atexit = False
        return cache

    def drop(self) -> bool:
        """Free what nobody uses; whether there was something."""
        spare, self._spare = self._spare, None
        return spare is not None

    def steps(self, past: Buffers, bound_to: Hashable) -> AsyncGreedySteps | None:
        """Those over a cache's buffers, if there are any that were bound to the like."""
        bound = self._in_use.get(_key(past))
        if bound is None or bound.steps is None or bound.steps[0] != bound_to:
            return None
        return bound.steps[1]

    def keep(self, past: Buffers, bound_to: Hashable, steps: AsyncGreedySteps) -> None:
        """Have them for the next answer."""
        bound = self._in_use.get(_key(past))
        if bound is not None:  # else it was expanded: it is no longer what was asked for
            bound.steps = bound_to, steps

    def _put_back(self, key: int) -> None:
        bound = self._in_use.pop(key, None)
        if bound is not None:
            self._spare = bound


def _fit(buffers: Buffers, rows: int, capacity: int) -> bool:
    buffer = next(iter(buffers.values()))
    return buffer.rows == rows and 0 <= buffer.capacity - capacity < SLACK


def _key(buffers: Buffers) -> int:
    return next(iter(buffers.values())).address
