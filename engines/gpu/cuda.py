"""CUDA: memory, copies, events and one stream, on the primary context of the first GPU, and CUDA graphs of the work on
that stream. Its driver is called through PyCUDA where that can be imported, else through cuda-bindings
(`nvidia_driver.open_driver`).

The primary context is the one that torch, CuPy and the CUDA runtime use, so device memory can be shared with them. It
is current only during an operation; operations of several threads run one after the other.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from flamingo_rt.engines.gpu.cuda_driver import CudaDriver, DriverError, OutOfMemoryError
from flamingo_rt.engines.gpu.nvidia_driver import open_driver, too_old
from flamingo_rt.errors import DataError, DependencyError

ALIGNMENT = 256  # bytes; TensorRT requires it of a tensor's address, and CUDA's own allocations have it
SMALLER = "use fewer rows or shots, or a smaller model"


class Owned:
    """A ``resource`` of the driver's, freed with the last reference to this, in whatever thread that goes: the context
    is made current there."""

    def __init__(self, driver: CudaDriver, resource: Any) -> None:
        self.resource, self._driver = resource, driver

    def __del__(self) -> None:
        with contextlib.suppress(DriverError):  # as where the context is gone, with everything in it
            self._driver.push()
            try:
                self.resource = None
            finally:
                self._driver.pop()


class DeviceMemory(Owned):
    """One allocation of device memory."""

    def __init__(self, driver: CudaDriver, resource: Any, address: int, bytes: int) -> None:
        super().__init__(driver, resource)
        self.address, self.bytes = address, bytes


class _PinnedMemory(Owned):
    """Page-locked host memory, which numpy makes arrays of that keep it."""

    def __init__(self, driver: CudaDriver, resource: Any, address: int, bytes: int) -> None:
        super().__init__(driver, resource)
        self.__array_interface__ = {"data": (address, False), "shape": (bytes,), "typestr": "|u1", "version": 3}


class Allocate(Protocol):
    """`Cuda.allocate`, or the same with another source of memory behind it (`CachePool.allocate`)."""

    def __call__(
        self, bytes: int, what: str, fitting: Callable[[int], str] | None = None
    ) -> DeviceMemory:
        """See `Cuda.allocate`."""
        ...


class Event(Owned):
    """An event, which can be recorded any number of times."""

    def synchronize(self) -> None:
        """Wait for what was on the stream when it was recorded last."""
        self._driver.wait(self.resource)


class CudaGraph(Owned):
    """Work captured on a stream, which is put there again as a whole. Addresses in it are fixed."""

    def enqueue(self) -> None:
        """Put the captured work on the stream again."""
        self.resource.launch()


class Cuda:
    """One GPU and one stream, used within `current`. Copies, `zero` and `record` are put on the stream, and return
    before they are done, except for copies from and to host memory that is not pinned.

    ``device_name`` is the GPU's, ``library`` the one that the driver is called through, ``captures`` says whether that
    has CUDA graphs, and ``stream`` is the stream's handle, a `CUstream` as a number.
    """

    def __init__(self) -> None:
        """Raises `DependencyError` without a library to call the driver through, without a GPU, or where CUDA does not
        start on it."""
        driver = open_driver()
        self._driver, self.library, self.captures = driver, driver.library, driver.captures
        # One thread at a time: work from another thread would become part of a CUDA graph that is being captured.
        self._lock = threading.RLock()
        try:
            device = driver.device()
            driver.open()
            driver.push()
            try:
                stream, self.stream = driver.stream()
            finally:
                driver.pop()
        except DriverError as error:
            remedy = too_old(driver) or "is it full, or in use by one process alone? nvidia-smi says"
            raise DependencyError(f"CUDA does not start on the GPU ({error}): {remedy}") from error
        self._stream = Owned(driver, stream)
        self.device_name, self._integrated = device.name, device.integrated

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the primary context this thread's, and keep other threads out.

        Raises `DataError` for an error of CUDA inside the block. An error of a run may show at any later call.
        """
        with self._lock:
            try:
                self._driver.push()
                try:
                    yield
                finally:
                    self._driver.pop()
            except OutOfMemoryError as error:
                raise DataError(f"the GPU has too little memory ({error}): {SMALLER}") from error
            except DriverError as error:
                raise DataError(
                    f"the GPU failed in a run of the model: {error}; start the program again, and if it happens again "
                    "look at nvidia-smi, build the engines or export the model again, or run it with --backend ort"
                ) from error

    def allocate(self, bytes: int, what: str, fitting: Callable[[int], str] | None = None) -> DeviceMemory:
        """Uninitialized device memory. Raises `DataError` when there is too little: the message names ``what`` it was
        for, and what would fit, which ``fitting`` says given the number of free bytes."""
        memory = self.try_to_allocate(bytes)
        if memory is not None:
            return memory
        self.synchronize()  # the caller's earlier allocations are freed by the error, and may be in use
        free, total = self._driver.memory_info()
        raise DataError(
            f"the GPU has too little memory: {what} takes {bytes / 1e6:,.1f} MB more, {free / 1e6:,.1f} MB of "
            f"{total / 1e6:,.1f} MB are free; {fitting(free) if fitting else SMALLER}"
        )

    def try_to_allocate(self, bytes: int) -> DeviceMemory | None:
        """Uninitialized device memory, or None when there is too little."""
        try:
            return DeviceMemory(self._driver, *self._driver.allocate(bytes), bytes)
        except OutOfMemoryError:
            return None

    def free_bytes(self) -> int | None:
        """Free device memory; None where it is the machine's: the system's own count knows what can be reclaimed."""
        return None if self._integrated else self._driver.memory_info()[0]

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array in page-locked host memory, which the GPU reads and writes by itself. Raises `DataError` when that
        much cannot be pinned."""
        bytes = math.prod(shape) * np.dtype(dtype).itemsize
        try:
            memory = _PinnedMemory(self._driver, *self._driver.pinned(bytes), bytes)
        except DriverError as error:
            raise DataError(
                f"{bytes / 1e6:,.1f} MB of the machine's memory cannot be pinned for the GPU ({error}): use fewer "
                "rows, or free memory"
            ) from error
        return np.asarray(memory).view(dtype).reshape(shape)

    def zero(self, memory: DeviceMemory) -> None:
        """Set all bytes to 0."""
        self._driver.zero(memory.address, memory.bytes, self._stream.resource)

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy a C-contiguous array to the device."""
        self._driver.upload(address, array, self._stream.resource)

    def download(self, array: np.ndarray, address: int) -> None:
        """Copy from the device to a C-contiguous array."""
        self._driver.download(array, address, self._stream.resource)

    def copy(self, target: int, source: int, bytes: int) -> None:
        """Copy ``bytes`` within the device."""
        self._driver.copy(target, source, bytes, self._stream.resource)

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int
    ) -> None:
        """Copy ``height`` pieces of ``width`` bytes within the device; the pitches are the bytes from the start of one
        piece to the next."""
        self._driver.copy_rows(target, target_pitch, source, source_pitch, width, height, self._stream.resource)

    def synchronize(self) -> None:
        """Wait for everything on the stream."""
        self._driver.synchronize(self._stream.resource)

    def event(self) -> Event:
        """An event that can be recorded any number of times."""
        return Event(self._driver, self._driver.event(timed=False))

    def record(self, event: Event) -> None:
        """Put an event on the stream, behind everything that is there."""
        self._driver.record(event.resource, self._stream.resource)

    def seconds(self, enqueue: Callable[[], None]) -> float:
        """Seconds that the work put on the stream by ``enqueue`` takes, by the device's clock. Waits for it."""
        start, end = (Event(self._driver, self._driver.event(timed=True)) for _ in range(2))
        self.record(start)
        enqueue()
        self.record(end)
        end.synchronize()
        return self._driver.milliseconds(start.resource, end.resource) / 1e3

    def wait_for(self, stream: int) -> None:
        """Wait for another stream's work, given its handle; 1 and 2 are the default streams."""
        self._driver.wait_for(stream)

    def capture(self, enqueue: Callable[[], None]) -> CudaGraph | None:
        """Capture the work that ``enqueue`` puts on the stream as a CUDA graph, without running it. None without
        cuda-bindings, which makes them for PyCUDA too.

        Raises `DriverError` for work that cannot be captured, and any error of ``enqueue``.
        """
        if not self.captures:
            return None
        return CudaGraph(self._driver, self._driver.capture(enqueue, self._stream.resource))


def aligned(bytes: int) -> int:
    """``bytes``, rounded up to a multiple of `ALIGNMENT`."""
    return math.ceil(bytes / ALIGNMENT) * ALIGNMENT
