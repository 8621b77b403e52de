"""The caches of one backend on the GPU: how their memory is kept from one answer to the next, and when it is freed.

Answers are short: allocating a cache, binding a step to it and capturing that step as a CUDA graph would be a good part
of each. So the pool keeps the buffers of the cache that was closed last, with the greedy steps bound to them and their
CUDA graph, if there are any. It frees them when a cache of another size is opened, when another cache is closed, and
when memory is short: an allocation fails (`CachePool.allocate`, through which the backend allocates all memory for its
arrays and caches), or TensorRT cannot allocate an execution context.

The decoder opens a cache and closes it. While it is open, the pool has no reference to its buffers: those of a cache
that is never closed are freed with its last reference. Closing it hands them to the pool. The cache that
`PooledCache.expand_rows` returns is a plain `DeviceCache`: closing it frees its memory.
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
    """A cache's buffers, and the greedy steps bound to them last. It has no reference to the pool: a circle would keep
    device memory until Python's collector finds it."""

    rows: int
    capacity: int
    buffers: dict[str, CacheBuffer]
    steps: AsyncGreedySteps | None = None
    shapes: Hashable = None  # of the inputs, beside the cache, that ``steps`` are bound to

    @property
    def bytes(self) -> int:
        """Device memory of the buffers."""
        return sum(buffer.memory.bytes for buffer in self.buffers.values())

    def fits(self, rows: int, capacity: int) -> bool:
        """Whether they serve as a cache of that size without wasting much memory."""
        return self.rows == rows and 0 <= self.capacity - capacity < SLACK


class CachePool:
    """Opens caches, and keeps the buffers of the one that was closed last."""

    def __init__(self, cuda: Cuda, layout: CacheLayout) -> None:
        self._cuda, self._layout = cuda, layout
        self._unused: PooledBuffers | None = None
        # Reentrant: Python's collector may close a forgotten answer, and so a cache, at any place.
        self._lock = threading.RLock()

    @property
    def unused_bytes(self) -> int:
        """Device memory of the buffers that are kept."""
        with self._lock:
            return self._unused.bytes if self._unused else 0

    def open(self, rows: int, capacity: int) -> PooledCache:
        """Open a cache of ``rows`` rows with room for ``capacity`` tokens, all 0: over the buffers that are kept if
        they fit, else over new ones. Raises `DataError` when the device has too little memory."""
        pooled = self._pop_unused()
        if pooled is not None and not pooled.fits(rows, capacity):
            pooled = None  # frees them before others are allocated
        with self._cuda.current():
            if pooled is None:
                buffers = self._layout.allocate(self.allocate, self._cuda, rows, capacity)
                pooled = PooledBuffers(rows, capacity, buffers)
            else:
                for buffer in pooled.buffers.values():
                    self._cuda.zero(buffer.memory)
            self._cuda.synchronize()
        return PooledCache(self, self._cuda, self._layout, capacity, pooled)

    def keep(self, pooled: PooledBuffers) -> None:
        """Keep the buffers of a cache that was closed, and free those kept before."""
        with self._lock:
            self._unused, pooled = pooled, self._unused  # freed when this returns, without the lock

    def free_unused(self) -> bool:
        """Free the buffers that are kept. Returns whether there were any."""
        return self._pop_unused() is not None

    def allocate(self, bytes: int, what: str, fitting: Callable[[int], str] | None = None) -> DeviceMemory:
        """See `Cuda.allocate`. When the device has too little memory, the buffers that are kept are freed first."""
        memory = self._cuda.try_to_allocate(bytes)
        if memory is not None:
            return memory
        self.free_unused()
        return self._cuda.allocate(bytes, what, fitting)

    def _pop_unused(self) -> PooledBuffers | None:
        with self._lock:
            unused, self._unused = self._unused, None
        return unused


class PooledCache(DeviceCache):
    """A cache over buffers that the pool gets when it is closed, with the greedy steps bound to them."""

    def __init__(self, pool: CachePool, cuda: Cuda, layout: CacheLayout, capacity: int, pooled: PooledBuffers) -> None:
        super().__init__(cuda, pool.allocate, layout, capacity, pooled.buffers)
        self._pool = pool
        self._pooled: PooledBuffers | None = pooled  # None once the pool has them, or will never get them

    def kept_steps(self, shapes: Hashable) -> AsyncGreedySteps | None:
        """Greedy steps that an answer before has bound to these buffers and to inputs of these ``shapes``, if any."""
        pooled = self._pooled
        return pooled.steps if pooled is not None and pooled.shapes == shapes else None

    def keep_steps(self, steps: AsyncGreedySteps, shapes: Hashable) -> None:
        """Keep greedy steps bound to this cache, and to inputs of these ``shapes``, for the answers that follow."""
        if self._pooled is not None:
            self._pooled.steps, self._pooled.shapes = steps, shapes

    def expand_rows(self, rows: int, length: int) -> DeviceCache:
        """See `DeviceCache.expand_rows`. The pool does not get these buffers: they are freed layer by layer."""
        self._pooled = None
        return super().expand_rows(rows, length)

    def close(self) -> None:
        """Hand the buffers to the pool, with the greedy steps bound to them. Closing twice does nothing."""
        pooled, self._pooled = self._pooled, None
        super().close()
        if pooled is not None:
            self._pool.keep(pooled)
