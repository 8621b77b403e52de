"""The caches of one backend on the GPU: who is handed one, who takes it back, and when its memory is freed.

Answers are short: allocating a cache, binding a step to it and capturing that step as a CUDA graph would be a good part
of each. So the pool keeps the cache that was closed last, with the greedy steps bound to it and their CUDA graph. It is
freed when a cache of another size is asked for, or when an allocation fails (`CachePool.allocate`, through which all
device memory of the backend comes).

A cache that is in use belongs to whoever opened it; the pool has no reference to it. Closing it gives its buffers back
to the pool. One that is never closed is freed with its last reference. One whose rows were expanded
(`PooledCache.expand_rows`) is a plain `DeviceCache` from then on, which the pool does not keep.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from flamingo_rt.engines.gpu.async_greedy import AsyncGreedySteps
from flamingo_rt.engines.gpu.cuda import Cuda, DeviceMemory
from flamingo_rt.engines.gpu.device_cache import CacheBuffer, CacheLayout, DeviceCache

SLACK = 256  # tokens that a pooled cache may have more than was asked for: prompts differ by a few


@dataclass
class PooledBuffers:
    """A cache's buffers, and the greedy steps bound to them last. Holds no reference to the pool: a circle would keep
    device memory until Python's collector finds it."""

    rows: int
    capacity: int
    buffers: dict[str, CacheBuffer]
    steps: AsyncGreedySteps | None = None
    bound_to: Hashable = None  # shapes of the inputs that ``steps`` take beside the cache

    @property
    def bytes(self) -> int:
        """Device memory of the buffers."""
        return sum(buffer.memory.bytes for buffer in self.buffers.values())

    def fits(self, rows: int, capacity: int) -> bool:
        """Whether it serves a cache of that size without wasting much memory."""
        return self.rows == rows and 0 <= self.capacity - capacity < SLACK


class CachePool:
    """Owns the cache that nobody uses, and hands it out again."""

    def __init__(self, cuda: Cuda, layout: CacheLayout) -> None:
        self._cuda, self._layout = cuda, layout
        self._unused: PooledBuffers | None = None
        # Reentrant: Python's collector may close a forgotten answer, and so a cache, at any place.
        self._lock = threading.RLock()

    @property
    def unused_bytes(self) -> int:
        """Device memory of the cache that nobody uses."""
        with self._lock:
            return self._unused.bytes if self._unused else 0

    def open(self, rows: int, capacity: int) -> PooledCache:
        """Hand out a cache with ``rows`` rows and room for ``capacity`` tokens, all 0: the one that is kept if it fits,
        else a new one. Raises `DataError` when the device has too little memory."""
        pooled = self._take_unused()
        if pooled is not None and not pooled.fits(rows, capacity):
            pooled = None  # frees it before another is allocated
        with self._cuda.current():
            if pooled is None:
                buffers = self._layout.allocate(self.allocate, self._cuda, rows, capacity)
                pooled = PooledBuffers(rows, capacity, buffers)
            else:
                for buffer in pooled.buffers.values():
                    self._cuda.zero(buffer.memory)
            self._cuda.synchronize()
        return PooledCache(self, self._cuda, self._layout, capacity, pooled)

    def take_back(self, pooled: PooledBuffers) -> None:
        """Keep the buffers of a cache that was closed, in place of those kept before."""
        with self._lock:
            self._unused, pooled = pooled, self._unused  # what was kept before is freed behind the lock

    def free_unused(self) -> bool:
        """Free the cache that nobody uses. Returns whether there was one."""
        return self._take_unused() is not None

    def allocate(self, bytes: int, what: str, fitting: Callable[[int], str] | None = None) -> DeviceMemory:
        """See `Cuda.allocate`. When the device has too little memory, the cache that nobody uses is freed first."""
        memory = self._cuda.try_to_allocate(bytes)
        if memory is not None:
            return memory
        self.free_unused()
        return self._cuda.allocate(bytes, what, fitting)

    def _take_unused(self) -> PooledBuffers | None:
        with self._lock:
            unused, self._unused = self._unused, None
        return unused


class PooledCache(DeviceCache):
    """A cache that the pool handed out. It brings the greedy steps of its last user, with their CUDA graph."""

    def __init__(self, pool: CachePool, cuda: Cuda, layout: CacheLayout, capacity: int, pooled: PooledBuffers) -> None:
        super().__init__(cuda, pool.allocate, layout, capacity, pooled.buffers)
        self._pool = pool
        self._pooled: PooledBuffers | None = pooled  # None once the pool has it back, or never will

    def greedy_steps(self, bound_to: Hashable) -> AsyncGreedySteps | None:
        """Steps over this cache for other inputs of these shapes, if its last user had such."""
        pooled = self._pooled
        return pooled.steps if pooled is not None and pooled.bound_to == bound_to else None

    def keep_greedy_steps(self, steps: AsyncGreedySteps, bound_to: Hashable) -> None:
        """Keep steps over this cache for its next user."""
        if self._pooled is not None:
            self._pooled.steps, self._pooled.bound_to = steps, bound_to

    def expand_rows(self, rows: int, length: int) -> DeviceCache:
        """See `DeviceCache.expand_rows`. The pool does not get these buffers back: they are freed layer by layer."""
        self._pooled = None
        return super().expand_rows(rows, length)

    def close(self) -> None:
        """Give the buffers back to the pool, with the steps bound to them."""
        pooled, self._pooled = self._pooled, None
        super().close()
        if pooled is not None:
            self._pool.take_back(pooled)
