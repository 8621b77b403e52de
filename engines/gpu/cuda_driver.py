"""The calls of CUDA's driver that `Cuda` makes, whichever library they go through: PyCUDA (`pycuda_driver.py`) or
cuda-bindings (`cuda_bindings_driver.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Stream = Any  # the library's own


class DriverError(RuntimeError):
    """A call of CUDA's driver failed. The message names the call, and says what the driver said."""


class OutOfMemoryError(DriverError):
    """The device has too little memory, or the host too little that can be pinned."""


class NoDeviceError(DriverError):
    """The driver shows no GPU."""


@dataclass(frozen=True)
class Device:
    """The first GPU as its driver describes it: ``capability`` is its compute capability, major and minor;
    an ``integrated`` one uses the machine's memory."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    integrated: bool


class CapturedWork(Protocol):
    """Work that was captured on a stream. Addresses in it are fixed."""

    def launch(self) -> None:
        """Put it on that stream again."""
        ...


class CudaDriver(Protocol):
    """The first GPU and its primary context, through one library.

    `init` comes first, then `device` and `open`; everything behind `push` wants the context to be current in the
    calling thread. So does the end of what `stream`, `allocate`, `pinned`, `event` and `capture` return, which are
    freed with their last reference: `cuda.Owned` sees to it. Addresses are numbers. Copies and `zero` are put on a
    stream; a copy from or to host memory that is not pinned may wait for it.

    Every call raises `DriverError` when it fails.
    """

    library: str  # name and version
    older: str  # advice for a driver that is older than the library, with {major} for the driver's version of CUDA
    captures: bool  # whether it has CUDA graphs

    def init(self) -> None:
        """Start the driver. Raises `NoDeviceError` where it shows no GPU."""
        ...

    def versions(self) -> tuple[int, int]:
        """Versions of CUDA (12060 is 12.6): the library's, and the newest that the driver takes."""
        ...

    def device(self) -> Device:
        """Describe the GPU."""
        ...

    def open(self) -> None:
        """Retain the GPU's primary context, which is released with the last reference to the driver."""
        ...

    def push(self) -> None:
        """Make the primary context the calling thread's."""
        ...

    def pop(self) -> None:
        """Undo the thread's last `push`."""
        ...

    def stream(self) -> tuple[Stream, int]:
        """Make a stream. Returns it and its handle, a `CUstream` as a number."""
        ...

    def memory_info(self) -> tuple[int, int]:
        """Bytes of device memory: those that are free, and all."""
        ...

    def allocate(self, bytes: int) -> tuple[Any, int]:
        """Device memory, and its address. Raises `OutOfMemoryError`."""
        ...

    def pinned(self, bytes: int) -> tuple[Any, int]:
        """Page-locked host memory, and its address. Raises `OutOfMemoryError`."""
        ...

    def zero(self, address: int, bytes: int, stream: Stream) -> None:
        """Set ``bytes`` from ``address`` on to 0."""
        ...

    def upload(self, address: int, array: np.ndarray, stream: Stream) -> None:
        """Copy a C-contiguous array to the device."""
        ...

    def download(self, array: np.ndarray, address: int, stream: Stream) -> None:
        """Copy from the device to a C-contiguous array."""
        ...

    def copy(self, target: int, source: int, bytes: int, stream: Stream) -> None:
        """Copy ``bytes`` within the device."""
        ...

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int, stream: Stream
    ) -> None:
        """Copy ``height`` pieces of ``width`` bytes within the device; the pitches are the bytes from the start of one
        piece to the next."""
        ...

    def synchronize(self, stream: Stream) -> None:
        """Wait for everything on a stream."""
        ...

    def wait_for(self, handle: int) -> None:
        """Wait for the stream of that handle, or for more; 1 and 2 are the default streams."""
        ...

    def event(self, timed: bool) -> Any:
        """Make an event; one that is ``timed`` keeps the time at which the stream comes to it."""
        ...

    def record(self, event: Any, stream: Stream) -> None:
        """Put an event on a stream, behind everything that is there."""
        ...

    def wait(self, event: Any) -> None:
        """Wait for what was on the stream when the event was recorded last."""
        ...

    def milliseconds(self, start: Any, end: Any) -> float:
        """Time between two timed events that were waited for, by the device's clock."""
        ...

    def capture(self, enqueue: Callable[[], None], stream: Stream) -> CapturedWork:
        """Capture the work that ``enqueue`` puts on a stream as a CUDA graph, without running it; only where the
        library ``captures``. Raises any error of ``enqueue``."""
        ...
