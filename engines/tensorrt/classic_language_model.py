"""The language model of the lowering ``tensorrt-classic``, bound to arrays. Its engine reads the cached tokens
[C, B, Hk, d] and returns the new ones [T, B, Hk, d], which are put into the cache here.

Its shapes follow the number of cached tokens, so they are set in every run, and no run is captured as a CUDA graph.
Where all rows have the same length, the engine writes the new tokens straight to their cache slots; otherwise it writes
them beside the cache, and they are moved.
"""

from __future__ import annotations

from flamingo_rt.contract import CACHE_LENGTH, INPUT_IDS
from flamingo_rt.engines.gpu.bound_arrays import Addresses, BoundArrays
from flamingo_rt.engines.gpu.cuda import ALIGNMENT, Allocate, Cuda, DeviceMemory, aligned
from flamingo_rt.engines.tensorrt.tensorrt_session import Profile


class ClassicLanguageModel:
    """A `BoundGraph`: a language model whose cache has the form ``appended``, in a prompt's run or in steps."""

    def __init__(self, cuda: Cuda, profile: Profile, arrays: BoundArrays, allocate: Allocate) -> None:
        """Raises `DataError` when there is too little device memory."""
        self._cuda, self._profile, self._arrays = cuda, profile, arrays
        self._lengths, self._tokens = arrays.host[CACHE_LENGTH], arrays.host[INPUT_IDS].shape[1]
        self._slot_bytes = next(iter(arrays.past.values())).slot_bytes
        # Read by the engine in place of an empty cache: it must hold numbers, apart from where the engine writes.
        self._empty = allocate(aligned(self._slot_bytes), "a slot of the cache")
        cuda.zero(self._empty)
        # Now, for all runs that may come: steps that a pool keeps must not hold `allocate`, which is the pool's. What
        # runs once has the lengths that it was bound with; those of a step may become unequal with the next answer.
        may_differ = len(self._lengths) > 1 and arrays.repeated
        self._new = self._room(allocate) if may_differ or not self._straight() else None

    def enqueue(self) -> None:
        """See `BoundGraph.enqueue`. Shapes and addresses are those that the present lengths ask for."""
        arrays, profile = self._arrays, self._profile
        used = int(self._lengths.max())
        slots = max(1, used)
        past = {name: buffer.address if used else self._empty.address for name, buffer in arrays.past.items()}
        profile.set_shapes({
            **arrays.shapes, **{name: (slots, *buffer.shape[1:]) for name, buffer in arrays.past.items()}
        })
        straight = self._straight()
        present = self._slots(used) if straight else self._beside()
        profile.bind({**arrays.addresses, **past, **present})
        arrays.upload()
        profile.enqueue(self._cuda.stream)
        arrays.download()
        if not straight:
            self._scatter(present)

    def _straight(self) -> bool:
        """Whether the engine can write the new tokens straight to their cache slots: all rows have the same length, and
        a slot begins at an address that TensorRT takes."""
        return int(self._lengths.max()) == int(self._lengths.min()) and self._slot_bytes % ALIGNMENT == 0

    def _slots(self, used: int) -> Addresses:
        """Addresses of the cache slots behind ``used`` tokens."""
        return {name: buffer.address + used * buffer.slot_bytes for name, buffer in self._arrays.present.items()}

    def _beside(self) -> Addresses:
        """Addresses beside the cache, for new tokens that are moved from there."""
        if self._new is None:  # what was bound for one run is run again with other lengths
            self._new = self._room(self._cuda.allocate)
        size = aligned(self._tokens * self._slot_bytes)
        return {name: self._new.address + index * size for index, name in enumerate(self._arrays.present)}

    def _room(self, allocate: Allocate) -> DeviceMemory:
        size = aligned(self._tokens * self._slot_bytes) * len(self._arrays.present)
        return allocate(size, "new tokens of all layers")

    def _scatter(self, addresses: Addresses) -> None:
        """Move each row's new tokens behind its cached ones."""
        for name, buffer in self._arrays.present.items():
            _, rows, heads, width = buffer.shape
            piece = heads * width * buffer.dtype.itemsize
            for row, start in enumerate(self._lengths.tolist()):
                target = buffer.pieces(row, slice(start, start + self._tokens))
                self._cuda.copy_rows(
                    target.address, target.pitch, addresses[name] + row * piece, rows * piece, piece, self._tokens
                )
