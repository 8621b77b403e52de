"""The cache that an engine used last, with the steps that are bound to it, for the next answer of its size.

Answers are short: allocating a cache, binding a step to it and capturing that as a CUDA graph would be a good part of
each. One cache is kept, until one of another size is asked for.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from flamingo_rt.engines.device_cache import CacheBuffer, DeviceCache
from flamingo_rt.engines.device_steps import DeviceGreedySteps

Buffers = dict[str, CacheBuffer]


@dataclass
class _Bound:
    """Buffers, and the steps that read and write them, by what else they were bound to."""

    buffers: Buffers
    steps: dict[Hashable, DeviceGreedySteps] = field(default_factory=dict)


class KeptCache:
    """Of one engine. It holds what belongs to caches in use too, until they are gone."""

    def __init__(self) -> None:
        self._spare: _Bound | None = None
        self._in_use: dict[int, _Bound] = {}  # by the address of the first buffer

    @property
    def spare_bytes(self) -> int:
        """Device memory of the cache that nobody uses."""
        return sum(buffer.memory.bytes for buffer in self._spare.buffers.values()) if self._spare else 0

    def cache(self, rows: int, capacity: int, make: Callable[[Buffers | None], DeviceCache]) -> DeviceCache:
        """What ``make`` makes of the spare buffers, if they have ``rows`` rows and room for ``capacity`` tokens, or of
        None. When that cache is gone, its buffers are the spare ones."""
        bound, self._spare = self._spare, None
        if bound is not None and not _fit(bound.buffers, rows, capacity):
            bound = None  # freed before others are allocated
        cache = make(bound.buffers if bound else None)
        bound = bound or _Bound(cache.buffers())
        key = _key(bound.buffers)
        self._in_use[key] = bound
        # Not when the interpreter ends: CUDA may be gone then.
        weakref.finalize(cache, self._put_back, key).atexit = False
        return cache

    def steps(self, past: Buffers, bound_to: Hashable) -> DeviceGreedySteps | None:
        """Those over a cache's buffers, if there are any that were bound to the like."""
        bound = self._in_use.get(_key(past))
        return bound.steps.get(bound_to) if bound is not None else None

    def keep(self, past: Buffers, bound_to: Hashable, steps: DeviceGreedySteps) -> None:
        """Have them for the next answer."""
        bound = self._in_use.get(_key(past))
        if bound is not None:  # else its rows were multiplied since: it is no longer what was asked for
            bound.steps[bound_to] = steps

    def _put_back(self, key: int) -> None:
        self._spare = self._in_use.pop(key)


def _fit(buffers: Buffers, rows: int, capacity: int) -> bool:
    buffer = next(iter(buffers.values()))
    return buffer.rows == rows and buffer.capacity >= capacity


def _key(buffers: Buffers) -> int:
    return next(iter(buffers.values())).address
