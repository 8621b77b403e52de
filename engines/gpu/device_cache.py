"""The self-attention cache in device memory, in either form of the contract. Not run on a GPU so far.

A row's tokens are pieces of equal size at equal distances: of ``in-place`` [B, Hk, C, d] a piece for each head, of
``appended`` [C, B, Hk, d] a piece for each token. So whatever is done to rows are strided copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flamingo_rt.contract import APPENDED, GraphSpec, TensorSpec
from flamingo_rt.engines.gpu.cuda import Cuda, DeviceMemory


@dataclass(frozen=True)
class Pieces:
    """``height`` pieces of ``width`` bytes from ``address`` on, ``pitch`` bytes from the start of one to the next."""

    address: int
    pitch: int
    width: int
    height: int


@dataclass(frozen=True)
class CacheBuffer:
    """The cached keys or values of one layer, all rows: a tensor of ``shape``, slot first where it is ``appended``."""

    memory: DeviceMemory
    shape: tuple[int, ...]
    dtype: np.dtype
    appended: bool
    offset: int = 0  # bytes into the memory, of one row of several

    @property
    def address(self) -> int:
        """Of the first number."""
        return self.memory.address + self.offset

    @property
    def rows(self) -> int:
        """Of the batch."""
        return self.shape[1 if self.appended else 0]

    @property
    def capacity(self) -> int:
        """Tokens that a row has room for."""
        return self.shape[0 if self.appended else 2]

    def row(self, index: int) -> CacheBuffer:
        """One row, in the same memory. Only where the cache is in place is that one piece."""
        shape = (1, *self.shape[1:])
        return replace(self, shape=shape, offset=self.offset + index * math.prod(shape) * self.dtype.itemsize)

    @property
    def slot_bytes(self) -> int:
        """Of one token of all rows, where it is appended."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def pieces(self, row: int, tokens: slice) -> Pieces:
        """Where some tokens of a row are."""
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


class DeviceCache:
    """`flamingo_rt.backend.Cache` in device memory. All of it is 0 at first: unused slots must hold numbers."""

    def __init__(
        self, cuda: Cuda, language_model: GraphSpec, form: str, rows: int, capacity: int, remedy: str,
        buffers: Mapping[str, CacheBuffer] | None = None,
    ) -> None:
        """``language_model`` has the cache in ``form``. ``buffers`` are those of a cache that is gone, of as many rows
        and at least that capacity. Raises `DataError` when the device has too little memory, with the ``remedy`` for
        not even one row."""
        self._cuda, self._appended, self._capacity, self._remedy = cuda, form == APPENDED, capacity, remedy
        self._specs = [spec for spec in language_model.inputs if "C" in spec.shape]
        self._buffers: dict[str, CacheBuffer] = {}
        self.when_expanded: Callable[[], object] = lambda: None  # called before its buffers are replaced
        with cuda.current():
            if buffers is not None:
                self._buffers.update(buffers)
                for buffer in buffers.values():
                    cuda.zero(buffer.memory)
            else:
                for spec in self._specs:
                    self._buffers[spec.name] = self._zeros(spec, rows)
            cuda.synchronize()

    def buffers(self) -> dict[str, CacheBuffer]:
        """By the name of the past."""
        return dict(self._buffers)

    def row(self, index: int) -> dict[str, CacheBuffer]:
        """As `CacheOfRows.row`, of a cache in place."""
        return {name: buffer.row(index) for name, buffer in self._buffers.items()}

    def restore(self, arrays: Mapping[str, np.ndarray], length: int) -> None:
        """As `Cache.restore`."""
        self.load(range(next(iter(self._buffers.values())).rows), arrays, length)

    def load(self, rows: Sequence[int], arrays: Mapping[str, np.ndarray], length: int) -> None:
        """Write the first ``length`` tokens of one row's past [1, Hk, length, d] to some rows."""
        with self._cuda.current():
            scratch = self._scratch(length)
            for name, array in arrays.items():
                one_row = array[0, :, :length].swapaxes(0, 1) if self._appended else array[0, :, :length]
                self._cuda.upload(scratch.address, np.ascontiguousarray(one_row))
                for row in rows:
                    target = self._buffers[name].pieces(row, slice(0, length))
                    self._move(target, _packed(scratch.address, target))
            self._cuda.synchronize()

    def save(self, length: int, row: int = 0) -> dict[str, np.ndarray]:
        """As `Cache.save`, of any row."""
        saved = {}
        with self._cuda.current():
            scratch = self._scratch(length)
            for spec in self._specs:
                buffer = self._buffers[spec.name]
                source = buffer.pieces(row, slice(0, length))
                heads, width = (buffer.shape[axis] for axis in ((2, 3) if self._appended else (1, 3)))
                array = np.empty((length, heads, width) if self._appended else (heads, length, width), buffer.dtype)
                self._move(_packed(scratch.address, source), source)
                self._cuda.download(array, scratch.address)
                self._cuda.synchronize()
                saved[spec.name] = np.ascontiguousarray(array.swapaxes(0, 1) if self._appended else array)[None]
        return saved

    def expand_rows(self, rows: int, length: int) -> None:
        """As `Cache.expand_rows`."""
        self.when_expanded()
        with self._cuda.current():
            for spec in self._specs:  # one at a time, so that only one is there twice
                self._buffers[spec.name] = self._expanded(self._buffers[spec.name], spec, rows, slice(0, length))

    def copy_rows(self, targets: Sequence[int], sources: Sequence[int], tokens: slice) -> None:
        """As `Cache.copy_rows`."""
        with self._cuda.current():
            beside = self._scratch(len(sources) * (tokens.stop - tokens.start)) if {*targets} & {*sources} else None
            for buffer in self._buffers.values():
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
            self._cuda.synchronize()  # what is beside must not go while it is read

    def _expanded(self, one: CacheBuffer, spec: TensorSpec, rows: int, tokens: slice) -> CacheBuffer:
        many = self._zeros(spec, rows)
        for row in range(rows):
            self._move(many.pieces(row, tokens), one.pieces(0, tokens))
        self._cuda.synchronize()  # the old one must not go while it is read
        return many

    def _move(self, target: Pieces, source: Pieces) -> None:
        self._cuda.copy_rows(
            target.address, target.pitch, source.address, source.pitch, target.width, target.height
        )

    def _scratch(self, tokens: int) -> DeviceMemory:
        """Room for so many tokens of one row and one layer."""
        return self._cuda.allocate(tokens * self._token_bytes(self._specs[0]), "copying a part of the cache")

    def _token_bytes(self, spec: TensorSpec) -> int:
        return math.prod(spec.resolve({"B": 1, "C": 1})) * np.dtype(spec.array_dtype).itemsize

    def _zeros(self, spec: TensorSpec, rows: int) -> CacheBuffer:
        shape = spec.resolve({"B": rows, "C": self._capacity})
        token = sum(self._token_bytes(each) for each in self._specs)  # of all layers
        held = sum(buffer.memory.bytes for buffer in self._buffers.values())

        def fitting(free: int) -> str:
            fits = (free + held) // (token * self._capacity)
            if fits:
                return f"{fits} of these rows would fit: ask for no more at a time"
            return f"{(free + held) // token:,} tokens would fit: {self._remedy}"

        bytes = math.prod(shape) * np.dtype(spec.array_dtype).itemsize
        total = rows * self._capacity * token
        what = f"the cache of {rows} rows of {self._capacity:,} tokens, {total / 1e6:,.1f} MB in all,"
        memory = self._cuda.allocate(bytes, what, fitting)
        self._cuda.zero(memory)
        return CacheBuffer(memory, shape, np.dtype(spec.array_dtype), self._appended)


def _packed(address: int, like: Pieces) -> Pieces:
    """The same pieces one directly after the other."""
    return Pieces(address, like.width, like.width, like.height)
