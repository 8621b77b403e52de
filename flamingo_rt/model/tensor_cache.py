"""The self-attention cache as tensors on a device of PyTorch, and the pool that keeps the one that was closed last.

A captured step reads and writes the cache at fixed places, so answers that shall share a step must share the cache's
memory: capacities are rounded up to multiples of `STEP`, and the pool keeps the tensors of the cache that was closed
last, with the steps over them, for the next answer of the same rows and rounded capacity. It frees them when a cache of
another size is opened or closed, and when memory is short. The pool has no reference to an open cache.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from flamingo_rt.contract import GraphSpec, TensorSpec
from flamingo_rt.errors import DataError
from flamingo_rt.model.static_step import StaticStep
from flamingo_rt.model.torch_device import Device, tensor_of

STEP = 64  # cache slots
MOST_STEPS = 8  # that are kept with a cache; each may be a CUDA graph


@dataclass(eq=False)
class CacheTensors:
    """The tensors [B, Hk, C, d] of a cache by the name of the past, and steps over them, by the shapes of their inputs:
    the ones used last, at most `MOST_STEPS`."""

    rows: int
    capacity: int
    tensors: dict[str, Tensor]
    steps: OrderedDict[Hashable, StaticStep] = field(default_factory=OrderedDict)

    def step(self, shapes: Hashable, make: Callable[[], StaticStep]) -> StaticStep:
        """The step for inputs of these ``shapes``, made by ``make`` the first time."""
        found = self.steps.get(shapes)
        if found is None:
            found = self.steps[shapes] = make()
            while len(self.steps) > MOST_STEPS:
                self.steps.popitem(last=False)
        self.steps.move_to_end(shapes)
        return found


@dataclass(frozen=True, eq=False)
class CacheBuffer:
    """The cached keys or values of one layer, as `Backend.bind` takes them. ``owner`` are the tensors of a whole cache;
    None for one row of it, over which no steps are kept."""

    tensor: Tensor
    owner: CacheTensors | None


class CachePool:
    """Opens caches of one model on one device, and keeps the tensors of the one that was closed last."""

    def __init__(self, device: Device, language_model: GraphSpec) -> None:
        """``language_model`` has its cache in place."""
        self._device = device
        self._specs = [spec for spec in language_model.inputs if "C" in spec.shape]
        self._unused: CacheTensors | None = None
        # Reentrant: Python's collector may close a forgotten answer, and so a cache, at any place.
        self._lock = threading.RLock()

    @property
    def unused_bytes(self) -> int:
        """Device memory of the tensors that are kept."""
        with self._lock:
            kept = self._unused.tensors.values() if self._unused else ()
            return sum(tensor.nbytes for tensor in kept)

    def open(self, rows: int, capacity: int) -> TensorCache:
        """Open a cache, all 0, with room for ``capacity`` tokens in each row. Raises `DataError` when the device has
        too little memory."""
        rounded = -(-capacity // STEP) * STEP
        kept = self._take_unused()
        if kept is not None and (kept.rows, kept.capacity) == (rows, rounded):
            with self._device.running("clearing the cache"):
                for tensor in kept.tensors.values():
                    tensor.zero_()
            return TensorCache(self, self._device, kept)
        del kept  # frees its memory before other is allocated
        return TensorCache(self, self._device, self.allocate(rows, rounded))

    def allocate(self, rows: int, capacity: int) -> CacheTensors:
        """New tensors for all layers."""
        made = CacheTensors(rows, capacity, {})
        for spec in self._specs:
            made.tensors[spec.name] = self.allocate_one(spec.name, rows, capacity, made.tensors)
        return made

    def allocate_one(self, name: str, rows: int, capacity: int, held: dict[str, Tensor]) -> Tensor:
        """A tensor of zeros for the keys or values of one layer. When there is too little memory, ``held``, those that
        are allocated for the same cache, is emptied, and a `DataError` says what would fit."""
        spec = next(spec for spec in self._specs if spec.name == name)
        shape, dtype = spec.resolve({"B": rows, "C": capacity}), getattr(torch, spec.dtype)
        try:
            return self._device.zeros(shape, dtype)
        except torch.OutOfMemoryError:
            self._take_unused()
            self._device.free_cached()
        try:
            return self._device.zeros(shape, dtype)
        except torch.OutOfMemoryError:
            held.clear()
        raise self._too_little(rows, capacity)  # outside the handler: the error's traceback would keep tensors

    def keep(self, tensors: CacheTensors | None) -> None:
        """Keep the tensors of a cache that was closed, and free those kept before."""
        with self._lock:
            self._unused, tensors = tensors, self._unused  # freed when this returns, without the lock

    def _take_unused(self) -> CacheTensors | None:
        with self._lock:
            unused, self._unused = self._unused, None
        return unused

    def _too_little(self, rows: int, capacity: int) -> DataError:
        token = sum(_token_bytes(spec) for spec in self._specs)
        free = self._device.available_bytes() or 0
        fits = free // (token * capacity)
        if fits:
            remedy = f"{fits} of these rows would fit: ask for no more at a time"
        else:
            remedy = f"{free // token:,} tokens would fit: use fewer shots or a smaller max_new_tokens"
        return DataError(
            f"the GPU has too little memory: the cache of {rows} rows of {capacity:,} tokens takes "
            f"{rows * capacity * token / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free; {remedy}"
        )


class TensorCache:
    """`flamingo_rt.backend.Cache` over tensors that the pool gets when it is closed."""

    def __init__(self, pool: CachePool, device: Device, tensors: CacheTensors, pooled: bool = True) -> None:
        self._pool, self._device, self._pooled = pool, device, pooled
        self._held: CacheTensors | None = tensors

    def buffers(self) -> dict[str, CacheBuffer]:
        """See `Cache.buffers`."""
        held = self._open()
        return {name: CacheBuffer(tensor, held) for name, tensor in held.tensors.items()}

    def row(self, index: int) -> dict[str, CacheBuffer]:
        """See `Cache.row`."""
        return {name: CacheBuffer(tensor[index : index + 1], None) for name, tensor in self._open().tensors.items()}

    def restore(self, arrays: Mapping[str, np.ndarray], length: int) -> None:
        """See `Cache.restore`."""
        held = self._open()
        with self._device.running("restoring a prefix"):
            for name, array in arrays.items():
                held.tensors[name][:, :, :length] = _on(self._device, array[:, :, :length])

    def save(self, length: int) -> dict[str, np.ndarray]:
        """See `Cache.save`."""
        with self._device.running("saving a prefix"):
            return {name: _array(tensor[:1, :, :length]) for name, tensor in self._open().tensors.items()}

    def expand_rows(self, rows: int, length: int) -> TensorCache:
        """See `Cache.expand_rows`. The pool does not get the new tensors: beams are as many as one answer asks for."""
        held = self._open()
        held.steps.clear()
        expanded = CacheTensors(rows, held.capacity, {})
        self._held = None
        with self._device.running("making rows for beams"):
            for name in list(held.tensors):  # layer by layer: only one is in memory twice
                many = self._pool.allocate_one(name, rows, held.capacity, expanded.tensors)
                many[:, :, :length] = held.tensors.pop(name)[:, :, :length]
                expanded.tensors[name] = many
        return TensorCache(self._pool, self._device, expanded, pooled=False)

    def copy_rows(self, targets: Sequence[int], sources: Sequence[int], tokens: slice) -> None:
        """See `Cache.copy_rows`."""
        with self._device.running("copying rows of the cache"):
            for tensor in self._open().tensors.values():
                # The right side is a copy, made before the left one is written.
                tensor[list(targets), :, tokens] = tensor[list(sources), :, tokens]

    def close(self) -> None:
        """Hand the tensors to the pool, or free those of beams."""
        held, self._held = self._held, None
        if held is not None and self._pooled:
            self._pool.keep(held)

    def _open(self) -> CacheTensors:
        if self._held is None:
            raise ValueError("the cache is closed")
        return self._held


def _token_bytes(spec: TensorSpec) -> int:
    """Bytes of one token of one row."""
    return int(np.prod(spec.resolve({"B": 1, "C": 1}))) * np.dtype(spec.array_dtype).itemsize


def _on(device: Device, array: np.ndarray) -> Tensor:
    return tensor_of(np.ascontiguousarray(array)).to(device.place)


def _array(tensor: Tensor) -> np.ndarray:
    """A copy in host memory; the bits of bfloat16 as uint16."""
    copied = tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
    return (copied.view(torch.uint16) if copied.dtype == torch.bfloat16 else copied).numpy()
