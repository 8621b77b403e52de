"""The self-attention cache in device memory, in either form of the contract: its buffers, and copies of rows.

A row's tokens are pieces of equal size at equal distances: in the form ``in-place`` [B, Hk, C, d] one piece for each
head, in ``appended`` [C, B, Hk, d] one for each token. So every operation on rows is a strided copy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flamingo_rt.contract import GraphSpec, TensorSpec
from flamingo_rt.engines.gpu.cuda import Allocate, Cuda, DeviceMemory


@dataclass(frozen=True)
class Pieces:
    """``height`` pieces of ``width`` bytes from ``address`` on, ``pitch`` bytes from the start of one to the next."""

    address: int
    pitch: int
    width: int
    height: int


@dataclass(frozen=True)
class CacheBuffer:
    """The cached keys or values of one layer, all rows: a tensor of ``shape``. Its first axis counts cache slots if it
    is ``appended``, else rows."""

    memory: DeviceMemory
    shape: tuple[int, ...]
    dtype: np.dtype
    appended: bool
    offset: int = 0  # bytes from the start of the memory to the first number: one of several rows begins later

    @property
    def address(self) -> int:
        """Address of the first number."""
        return self.memory.address + self.offset

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return self.shape[1 if self.appended else 0]

    @property
    def slot_bytes(self) -> int:
        """Bytes of one cache slot, which has a token of every row; only in the form ``appended``."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def row(self, index: int) -> CacheBuffer:
        """One row, in the same memory; only in the form ``in-place``, where a row is contiguous."""
        shape = (1, *self.shape[1:])
        return replace(self, shape=shape, offset=self.offset + index * math.prod(shape) * self.dtype.itemsize)

    def pieces(self, row: int, tokens: slice) -> Pieces:
        """The memory of some tokens of a row."""
        size = self.dtype.itemsize
        if self.appended:
            _, rows, heads, width = self.shape
            piece = heads * width * size
            return Pieces(
                self.address + (tokens.start * rows + row) * piece, rows * piece, piece, tokens.stop - tokens.start
            )
        _, heads, capacity, width = self.shape
        start = (row * heads * capacity + tokens.start) * width * size
        return Pieces(
            self.address + start, capacity * width * size, (tokens.stop - tokens.start) * width * size, heads
        )


class CacheLayout:
    """Shapes and types of a language model's cache, in the form that its graph has."""

    def __init__(self, language_model: GraphSpec, remedy: str) -> None:
        """``remedy`` is the advice where not even one row fits into memory."""
        self.specs = [spec for spec in language_model.inputs if "C" in spec.shape]
        self.appended = self.specs[0].shape[0] == "C"
        self._remedy = remedy

    def token_bytes(self, spec: TensorSpec) -> int:
        """Bytes of one token of one row, in the keys or values of one layer."""
        return math.prod(spec.resolve({"B": 1, "C": 1})) * np.dtype(spec.array_dtype).itemsize

    def allocate(self, allocate: Allocate, cuda: Cuda, rows: int, capacity: int) -> dict[str, CacheBuffer]:
        """Buffers for all layers, by the name of the past, all 0: unused cache slots must hold numbers. Raises
        `DataError` when the device has too little memory."""
        buffers: dict[str, CacheBuffer] = {}
        for spec in self.specs:
            held = sum(buffer.memory.bytes for buffer in buffers.values())
            buffers[spec.name] = self.allocate_one(allocate, cuda, spec, rows, capacity, held)
        return buffers

    def allocate_one(
        self, allocate: Allocate, cuda: Cuda, spec: TensorSpec, rows: int, capacity: int, held: int
    ) -> CacheBuffer:
        """A buffer for the keys or values of one layer; ``held`` bytes are allocated for the same cache already."""
        token = sum(self.token_bytes(each) for each in self.specs)  # in all layers

        def fitting(free: int) -> str:
            fits = (free + held) // (token * capacity)
            if fits:
                return f"{fits} of these rows would fit: ask for no more at a time"
            return f"{(free + held) // token:,} tokens would fit: {self._remedy}"

        shape, dtype = spec.resolve({"B": rows, "C": capacity}), np.dtype(spec.array_dtype)
        what = f"the cache of {rows} rows of {capacity:,} tokens, {rows * capacity * token / 1e6:,.1f} MB in all,"
        memory = allocate(math.prod(shape) * dtype.itemsize, what, fitting)
        cuda.zero(memory)
        return CacheBuffer(memory, shape, dtype, self.appended)


class DeviceCache:
    """`flamingo_rt.backend.Cache` in device memory of its own, which is freed when it is closed."""

    def __init__(
        self, cuda: Cuda, allocate: Allocate, layout: CacheLayout, capacity: int, buffers: dict[str, CacheBuffer]
    ) -> None:
        """``buffers`` have room for ``capacity`` tokens or more; memory for copies comes from ``allocate``."""
        self._cuda, self._allocate, self._layout, self._capacity = cuda, allocate, layout, capacity
        self._held: dict[str, CacheBuffer] | None = buffers

    def buffers(self) -> Mapping[str, CacheBuffer]:
        """See `Cache.buffers`."""
        return dict(self._open())

    def row(self, index: int) -> dict[str, CacheBuffer]:
        """See `Cache.row`; only in the form ``in-place``."""
        return {name: buffer.row(index) for name, buffer in self.buffers().items()}

    def restore(self, arrays: Mapping[str, np.ndarray], length: int) -> None:
        """See `Cache.restore`."""
        self.load(range(next(iter(self.buffers().values())).rows), arrays, length)

    def load(self, rows: Sequence[int], arrays: Mapping[str, np.ndarray], length: int) -> None:
        """Write the first ``length`` tokens of one row's past [1, Hk, length or more, d] to each of some rows."""
        buffers = self.buffers()
        with self._cuda.current():
            scratch = self._scratch(length)
            for name, array in arrays.items():
                one_row = array[0, :, :length].swapaxes(0, 1) if self._layout.appended else array[0, :, :length]
                self._cuda.upload(scratch.address, np.ascontiguousarray(one_row))
                for row in rows:
                    target = buffers[name].pieces(row, slice(0, length))
                    self._move(target, _packed(scratch.address, target))
            self._cuda.synchronize()

    def save(self, length: int, row: int = 0) -> dict[str, np.ndarray]:
        """See `Cache.save`; saves any ``row``."""
        saved = {}
        appended = self._layout.appended
        with self._cuda.current():
            scratch = self._scratch(length)
            for name, buffer in self.buffers().items():
                source = buffer.pieces(row, slice(0, length))
                heads, width = (buffer.shape[axis] for axis in ((2, 3) if appended else (1, 3)))
                array = np.empty((length, heads, width) if appended else (heads, length, width), buffer.dtype)
                self._move(_packed(scratch.address, source), source)
                self._cuda.download(array, scratch.address)
                self._cuda.synchronize()
                saved[name] = np.ascontiguousarray(array.swapaxes(0, 1) if appended else array)[None]
        return saved

    def expand_rows(self, rows: int, length: int) -> DeviceCache:
        """See `Cache.expand_rows`. The new cache has memory of its own, which no pool keeps."""
        held = self._open()
        expanded: dict[str, CacheBuffer] = {}
        self._held = None
        with self._cuda.current():
            for spec in self._layout.specs:  # layer by layer: only one is in memory twice
                allocated = sum(buffer.memory.bytes for buffer in (*held.values(), *expanded.values()))
                many = self._layout.allocate_one(self._allocate, self._cuda, spec, rows, self._capacity, allocated)
                for row in range(rows):
                    tokens = slice(0, length)
                    self._move(many.pieces(row, tokens), held[spec.name].pieces(0, tokens))
                self._cuda.synchronize()  # the old buffer must not be freed while it is read
                expanded[spec.name] = many
                del held[spec.name]
        return DeviceCache(self._cuda, self._allocate, self._layout, self._capacity, expanded)

    def copy_rows(self, targets: Sequence[int], sources: Sequence[int], tokens: slice) -> None:
        """See `Cache.copy_rows`."""
        buffers = self.buffers()
        with self._cuda.current():
            beside = self._scratch(len(sources) * (tokens.stop - tokens.start)) if {*targets} & {*sources} else None
            for buffer in buffers.values():
                read = [buffer.pieces(row, tokens) for row in sources]
                if beside is not None:  # rows change places: all are read before one is written
                    kept = [
                        _packed(beside.address + index * each.width * each.height, each)
                        for index, each in enumerate(read)
                    ]
                    for target, source in zip(kept, read, strict=True):
                        self._move(target, source)
                    read = kept
                for row, source in zip(targets, read, strict=True):
                    self._move(buffer.pieces(row, tokens), source)
            self._cuda.synchronize()  # the scratch memory must not be freed while it is read

    def close(self) -> None:
        """Drop the buffers, which frees their memory."""
        self._held = None

    def _open(self) -> dict[str, CacheBuffer]:
        if self._held is None:
            raise ValueError("the cache is closed")
        return self._held

    def _move(self, target: Pieces, source: Pieces) -> None:
        self._cuda.copy_rows(
            target.address, target.pitch, source.address, source.pitch, target.width, target.height
        )

    def _scratch(self, tokens: int) -> DeviceMemory:
        """Room for so many tokens of one row and one layer."""
        return self._allocate(tokens * self._layout.token_bytes(self._layout.specs[0]), "copying a part of the cache")


def _packed(address: int, like: Pieces) -> Pieces:
    """The same pieces, one directly after the other."""
    return Pieces(address, like.width, like.width, like.height)
