"""CUDA through PyCUDA: memory, copies and one stream, on the primary context of the first GPU; CUDA graphs through
cuda-bindings, on the same stream.

The primary context is the one that torch, CuPy and the CUDA runtime use, so device memory can be shared with them. It
is current only during an operation; operations of several threads run one after the other. The calls are those in the
documentation of PyCUDA 2026.1 and cuda-bindings 13.5.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from flamingo_rt.errors import DataError, DependencyError

ALIGNMENT = 256  # bytes; TensorRT requires it of a tensor's address, and CUDA's own allocations have it
MEMSET_BYTES = 1 << 30  # at most, in one call: PyCUDA counts the bytes to set in 32 bits


def import_pycuda() -> Any:
    """PyCUDA's driver module. Raises `DependencyError` that names the extra, or where there is no GPU or driver."""
    try:
        import pycuda.driver as driver
    except ImportError as error:  # its extension links to the driver, so a missing driver ends here too
        raise DependencyError(
            f"PyCUDA cannot be imported ({error}): it needs an NVIDIA driver, and pip install 'flamingo-rt[cuda]', "
            "which compiles it: with a C++ compiler and the CUDA toolkit"
        ) from error
    try:
        driver.init()
        count = driver.Device.count()
    except driver.Error as error:
        raise DependencyError(f"CUDA does not start ({error}): look at nvidia-smi, or update the driver") from error
    if not count:
        raise DependencyError("CUDA finds no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES")
    return driver


def import_cuda_graphs() -> Any | None:
    """cuda-bindings' driver module, for CUDA graphs, which PyCUDA does not have; None where it is not installed: then
    each step takes longer to start."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    return driver


class CallError(RuntimeError):
    """A call of cuda-bindings failed."""


class DeviceMemory:
    """One allocation of device memory, freed with its last reference."""

    def __init__(self, allocation: Any, bytes: int) -> None:
        self._allocation, self.bytes = allocation, bytes
        self.address = int(allocation)


class Allocate(Protocol):
    """`Cuda.allocate`, or the same with another source of memory behind it (`CachePool.allocate`)."""

    def __call__(
        self, bytes: int, what: str, fitting: Callable[[int], str] | None = None
    ) -> DeviceMemory:
        """See `Cuda.allocate`."""
        ...


class CudaGraph:
    """Work captured on a stream, which is put there again as a whole. Addresses in it are fixed."""

    def __init__(self, bindings: Any, executable: Any, stream: Any) -> None:
        self._bindings, self._executable, self._stream = bindings, executable, stream

    def enqueue(self) -> None:
        """Put the captured work on the stream again."""
        _check(self._bindings, self._bindings.cuGraphLaunch(self._executable, self._stream), "cuGraphLaunch")

    def __del__(self) -> None:
        self._bindings.cuGraphExecDestroy(self._executable)


class Cuda:
    """One GPU and one stream, used within `current`. Copies, `zero` and `record` are put on the stream, and return
    before they are done, except for copies from and to host memory that is not pinned."""

    def __init__(self) -> None:
        """Raises `DependencyError` without PyCUDA or a GPU, or where CUDA does not start on it."""
        self._driver, self._bindings = import_pycuda(), import_cuda_graphs()
        # One thread at a time: work from another thread would become part of a CUDA graph that is being captured.
        self._lock = threading.RLock()
        try:
            device = self._driver.Device(0)
            self.device_name = str(device.name())
            integrated = self._driver.device_attribute.INTEGRATED
            self._integrated = bool(device.get_attribute(integrated))  # it shares the machine's memory
            self._context = device.retain_primary_context()
            with self.current():
                self._stream = self._driver.Stream()
        except (self._driver.Error, DataError) as error:
            raise DependencyError(
                f"CUDA does not start on the GPU ({error}): is it full, or in use by one process alone? nvidia-smi says"
            ) from error

    @property
    def stream(self) -> int:
        """The stream's handle, a `CUstream` as a number."""
        return int(self._stream.handle)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the primary context this thread's, and keep other threads out.

        Raises `DataError` for an error of CUDA inside the block. An error of a run may show at any later call.
        """
        with self._lock:
            self._context.push()
            try:
                yield
            except (self._driver.Error, CallError) as error:
                raise DataError(
                    f"the GPU failed in a run of the model: {error}; start the program again, and if it happens again "
                    "look at nvidia-smi, build the engines or export the model again, or run it with --backend ort"
                ) from error
            finally:
                self._driver.Context.pop()

    def allocate(self, bytes: int, what: str, fitting: Callable[[int], str] | None = None) -> DeviceMemory:
        """Uninitialized device memory. Raises `DataError` when there is too little: the message names ``what`` it was
        for, and what would fit, which ``fitting`` says given the number of free bytes."""
        memory = self.try_to_allocate(bytes)
        if memory is not None:
            return memory
        self.synchronize()  # the caller's earlier allocations are freed by the error, and may be in use
        free, total = self._driver.mem_get_info()
        remedy = fitting(free) if fitting else "use fewer rows or shots, or a smaller model"
        raise DataError(
            f"the GPU has too little memory: {what} takes {bytes / 1e6:,.1f} MB more, {free / 1e6:,.1f} MB of "
            f"{total / 1e6:,.1f} MB are free; {remedy}"
        )

    def try_to_allocate(self, bytes: int) -> DeviceMemory | None:
        """Uninitialized device memory, or None when there is too little."""
        try:
            return DeviceMemory(self._driver.mem_alloc(bytes), bytes)
        except self._driver.MemoryError:
            return None

    def free_bytes(self) -> int | None:
        """Free device memory; None where it is the machine's: the system's own count knows what can be reclaimed."""
        return None if self._integrated else int(self._driver.mem_get_info()[0])

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array in page-locked host memory, which the GPU reads and writes by itself. Raises `DataError` when that
        much cannot be pinned."""
        try:
            return self._driver.pagelocked_empty(shape, dtype)
        except self._driver.Error as error:
            raise DataError(
                f"{math.prod(shape) * np.dtype(dtype).itemsize / 1e6:,.1f} MB of the machine's memory cannot be pinned "
                f"for the GPU ({error}): use fewer rows, or free memory"
            ) from error

    def zero(self, memory: DeviceMemory) -> None:
        """Set all bytes to 0."""
        for start in range(0, memory.bytes, MEMSET_BYTES):
            count = min(MEMSET_BYTES, memory.bytes - start)
            self._driver.memset_d8_async(memory.address + start, 0, count, self._stream)

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy a C-contiguous array to the device."""
        self._driver.memcpy_htod_async(address, array, self._stream)

    def download(self, array: np.ndarray, address: int) -> None:
        """Copy from the device to a C-contiguous array."""
        self._driver.memcpy_dtoh_async(array, address, self._stream)

    def copy(self, target: int, source: int, bytes: int) -> None:
        """Copy ``bytes``, fewer than 4 GiB, within the device."""
        self._driver.memcpy_dtod_async(target, source, bytes, self._stream)

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int
    ) -> None:
        """Copy ``height`` pieces of ``width`` bytes within the device; the pitches are the bytes from the start of one
        piece to the next."""
        copy = self._driver.Memcpy2D()
        copy.set_src_device(source)
        copy.set_dst_device(target)
        copy.src_pitch, copy.dst_pitch = source_pitch, target_pitch
        copy.width_in_bytes, copy.height = width, height
        copy(self._stream)

    def synchronize(self) -> None:
        """Wait for everything on the stream."""
        self._stream.synchronize()

    def event(self) -> Any:
        """An event that can be recorded any number of times. Its ``synchronize`` waits for what was on the stream when
        it was recorded last."""
        return self._driver.Event(self._driver.event_flags.DISABLE_TIMING)

    def record(self, event: Any) -> None:
        """Put an event on the stream, behind everything that is there."""
        event.record(self._stream)

    def seconds(self, enqueue: Callable[[], None]) -> float:
        """Seconds that the work put on the stream by ``enqueue`` takes, by the device's clock. Waits for it."""
        start, end = self._driver.Event(), self._driver.Event()
        start.record(self._stream)
        enqueue()
        end.record(self._stream)
        end.synchronize()
        return start.time_till(end) / 1e3  # milliseconds

    def wait_for(self, stream: int) -> None:
        """Wait for another stream's work, given its handle; 1 and 2 are the default streams."""
        bindings = self._bindings
        if bindings is None:
            self._driver.Context.synchronize()
        else:
            _check(bindings, bindings.cuStreamSynchronize(bindings.CUstream(stream)), "cuStreamSynchronize")

    def capture(self, enqueue: Callable[[], None]) -> CudaGraph | None:
        """Capture the work that ``enqueue`` puts on the stream as a CUDA graph, without running it. None without
        cuda-bindings.

        Raises `CallError` for work that cannot be captured, and any error of ``enqueue``.
        """
        bindings = self._bindings
        if bindings is None:
            return None
        stream = bindings.CUstream(self.stream)
        # Relaxed, as Python may free device memory during the capture, on any thread: the other modes forbid that.
        mode = bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        _check(bindings, bindings.cuStreamBeginCapture(stream, mode), "cuStreamBeginCapture")
        try:
            enqueue()
        except BaseException:
            bindings.cuStreamEndCapture(stream)  # a stream must not stay in capture mode
            raise
        captured = _check(bindings, bindings.cuStreamEndCapture(stream), "cuStreamEndCapture")
        try:
            executable = _check(bindings, bindings.cuGraphInstantiate(captured, 0), "cuGraphInstantiate")
        finally:
            bindings.cuGraphDestroy(captured)
        return CudaGraph(bindings, executable, stream)


def _check(bindings: Any, result: tuple[Any, ...], call: str) -> Any:
    """The value that a call of cuda-bindings returned behind its status. Raises `CallError` unless it succeeded."""
    status, *values = result
    if status != bindings.CUresult.CUDA_SUCCESS:
        raise CallError(f"{call} failed: {status}")
    return values[0] if values else None


def aligned(bytes: int) -> int:
    """``bytes``, rounded up to a multiple of `ALIGNMENT`."""
    return math.ceil(bytes / ALIGNMENT) * ALIGNMENT
