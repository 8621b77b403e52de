"""A stand-in for a GPU, on the memory of the host: CUDA's driver by the functions that the engines need. PyCUDA's
stand-in (`fake_pycuda.py`) and that of cuda-bindings (`fake_cuda_bindings.py`) call it.

It is strict about what it can see: memory that is read or written must be allocated and not freed, in size and in time;
copies and runs happen when the stream is waited for, so what is read too early is wrong; calls need the context to be
current in their thread.

It cannot show: speed; what CUDA refuses to capture; races between streams. The functions' names and arguments are
compared with the real libraries' where those are installed (`test_real_libraries.py`).
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
from dataclasses import dataclass

import numpy as np

ALIGNMENT = 256
STREAM = 7  # the handle of every stream: all share one queue
CONTEXT = 1
PYCUDA, CUDA_BINDINGS = LIBRARIES = ("pycuda", "cuda-bindings")
DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING
ATTRIBUTES = {18: 0, 75: 8, 76: 9}  # CUdevice_attribute: integrated, compute capability
# Statuses of CUresult that are given here: their numbers, and what the driver says of them.
STATUSES = {
    "CUDA_SUCCESS": (0, "no error"),
    "CUDA_ERROR_OUT_OF_MEMORY": (2, "out of memory"),
    "CUDA_ERROR_DEVICE_UNAVAILABLE": (46, "CUDA-capable device(s) is/are busy or unavailable"),
    "CUDA_ERROR_NO_DEVICE": (100, "no CUDA-capable device is detected"),
    "CUDA_ERROR_INVALID_CONTEXT": (201, "invalid device context"),
    "CUDA_ERROR_ILLEGAL_ADDRESS": (700, "an illegal memory access was encountered"),
    "CUDA_ERROR_CONTEXT_IS_DESTROYED": (709, "context is destroyed"),
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": (803, "system has unsupported display driver / cuda driver combination"),
    "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": (900, "operation not permitted when stream is capturing"),
}


class Refused(Exception):
    """A call that gives another status than success."""

    def __init__(self, call: str, status: str) -> None:
        super().__init__(f"{call} failed: {STATUSES[status][1]}")
        self.status = status


@dataclass
class FakeEvent:
    """An event holds the time at which the stream came to it."""

    timed: bool
    recorded: int = 0
    reached: int = 0
    time: float = 0.0


class FakeGpu:
    """The device: its memory, its one context, the work on its stream, and what was asked of it, in order.

    ``library`` is the one that the CUDA layer finds. ``failures`` are statuses of CUresult by the function that gives
    them, or errors that it raises.
    """

    def __init__(self, memory: int = 1 << 30, library: str = PYCUDA) -> None:
        self.memory, self.used, self.library = memory, 0, library
        self.allocations: dict[int, int] = {}  # address -> bytes
        self.pinned: dict[int, np.ndarray] = {}
        self.queue: list = []
        self.capturing: list | None = None
        self.calls: list[tuple] = []
        self.failures: dict[str, str | Exception] = {}
        self.count, self.newest_cuda, self.retained, self.streams = 1, 13000, 0, 0
        self.integrated = False
        self._thread = threading.local()
        self._kept: dict[int, np.ndarray] = {}
        self._freed: list[np.ndarray] = []  # while work waits
        self._events: dict[int, FakeEvent] = {}
        self.graphs: dict[int, list] = {}
        self.executables: dict[int, list] = {}
        self._numbers = itertools.count(1)

    @property
    def current(self) -> int:
        """The times that this thread has made the context its own."""
        return getattr(self._thread, "depth", 0)

    def called(self, name: str) -> list[tuple]:
        """The calls of a name."""
        return [call for call in self.calls if call[0] == name]

    def allocate(self, bytes: int) -> int:
        assert bytes > 0
        buffer = np.full(bytes + ALIGNMENT, 0xFF, dtype=np.uint8)  # NaN, as fresh memory may hold
        address = -(-buffer.ctypes.data // ALIGNMENT) * ALIGNMENT
        self.allocations[address] = bytes
        self.used += bytes
        self._kept[address] = buffer
        return address

    def free(self, address: int) -> None:
        self.used -= self.allocations.pop(address)
        self._keep_for_now(self._kept.pop(address))

    def _keep_for_now(self, buffer: np.ndarray) -> None:
        if self.queue:  # of another thread, perhaps: this address stays unused, so that work that uses it fails
            self._freed.append(buffer)

    def bytes_at(self, address: int, count: int) -> np.ndarray:
        """A view of device memory, which must be there."""
        for start, size in self.allocations.items():
            if start <= address and address + count <= start + size:
                return _view(address, count)
        raise AssertionError(f"{count} bytes at {address:#x} are not allocated, or were freed")

    def put(self, work) -> None:
        """Put work on the stream, or into the graph that is being captured."""
        assert self.current == 1, "no context is current, or several are"
        (self.queue if self.capturing is None else self.capturing).append(work)

    def synchronize(self) -> None:
        assert self.current == 1
        assert self.capturing is None, "a wait for the stream cannot be captured"
        self.calls.append(("synchronize",))
        self._run()

    def _run(self) -> None:
        work, self.queue = self.queue, []
        for each in work:
            each()
        if not self.queue:
            self._freed.clear()

    def is_pinned(self, address: int, count: int) -> bool:
        return any(
            start <= address and address + count <= start + array.nbytes for start, array in self.pinned.items()
        )

    def _host(self, address: int, count: int) -> np.ndarray:
        assert self.is_pinned(address, count), "host memory that is no longer pinned"
        return _view(address, count)

    def _check(self, call: str, needs_context: bool = True) -> None:
        failure = self.failures.get(call)
        if isinstance(failure, Exception):
            raise failure
        if failure is not None or (needs_context and not self.current):
            raise Refused(call, failure or "CUDA_ERROR_INVALID_CONTEXT")

    # The driver's functions, by the names and arguments that cuda-bindings gives them.

    def cuInit(self, Flags):
        self._check("cuInit", False)
        assert Flags == 0

    def cuDriverGetVersion(self):
        self._check("cuDriverGetVersion", False)
        return self.newest_cuda

    def cuDeviceGetCount(self):
        self._check("cuDeviceGetCount", False)
        return self.count

    def cuDeviceGet(self, ordinal):
        assert ordinal == 0
        return 3

    def cuDeviceGetName(self, length, dev):
        assert dev == 3
        return b"Fake\0".ljust(length)

    def cuDeviceTotalMem(self, dev):
        assert dev == 3
        return self.memory

    def cuDeviceGetAttribute(self, attrib, dev):
        assert dev == 3
        return {**ATTRIBUTES, 18: int(self.integrated)}[int(attrib)]

    def cuDevicePrimaryCtxRetain(self, dev):
        self._check("cuDevicePrimaryCtxRetain", False)
        self.calls.append(("retain_primary_context",))
        self.retained += 1
        return CONTEXT

    def cuDevicePrimaryCtxRelease(self, dev):
        assert self.retained, "a context that nobody holds"
        self.retained -= 1

    def cuCtxPushCurrent(self, ctx):
        self._check("cuCtxPushCurrent", False)
        assert ctx == CONTEXT
        if not self.retained:
            raise Refused("cuCtxPushCurrent", "CUDA_ERROR_CONTEXT_IS_DESTROYED")
        self._thread.depth = self.current + 1

    def cuCtxPopCurrent(self):
        assert self.current, "no context is current"
        self._thread.depth -= 1
        return CONTEXT

    def cuCtxSynchronize(self):
        self._check("cuCtxSynchronize")
        self.calls.append(("wait for", "all"))
        self._run()

    def cuStreamCreate(self, Flags):
        self._check("cuStreamCreate")
        assert Flags == 0
        self.streams += 1
        return STREAM

    def cuStreamDestroy(self, hStream):
        self._check("cuStreamDestroy")
        assert hStream == STREAM
        self.streams -= 1

    def cuStreamSynchronize(self, hStream):
        self._check("cuStreamSynchronize")
        if hStream == STREAM:
            self.synchronize()
        else:
            self.calls.append(("wait for", hStream))

    def cuMemGetInfo(self):
        self._check("cuMemGetInfo")
        return self.memory - self.used, self.memory

    def cuMemAlloc(self, bytesize):
        self._check("cuMemAlloc")
        if self.used + bytesize > self.memory:
            raise Refused("cuMemAlloc", "CUDA_ERROR_OUT_OF_MEMORY")
        return self.allocate(bytesize)

    def cuMemFree(self, dptr):
        self._check("cuMemFree")
        self.free(dptr)

    def cuMemHostAlloc(self, bytesize, Flags):
        self._check("cuMemHostAlloc")
        assert Flags == 0
        assert bytesize > 0
        array = np.empty(bytesize, np.uint8)
        self.pinned[array.ctypes.data] = array
        return array.ctypes.data

    def cuMemFreeHost(self, p):
        self._check("cuMemFreeHost")
        self._keep_for_now(self.pinned.pop(p))

    def cuMemsetD8Async(self, dstDevice, uc, N, hStream):
        assert hStream == STREAM
        self.put(lambda: self.bytes_at(dstDevice, N).fill(uc))

    def cuMemcpyHtoDAsync(self, dstDevice, srcHost, ByteCount, hStream):
        assert hStream == STREAM
        if self.is_pinned(srcHost, ByteCount):
            self.put(lambda: _copy(self.bytes_at(dstDevice, ByteCount), self._host(srcHost, ByteCount)))
            return
        assert self.capturing is None, "pageable memory in a graph"
        held = _view(srcHost, ByteCount).copy()  # pageable memory is read before the call returns
        self.put(lambda: _copy(self.bytes_at(dstDevice, ByteCount), held))

    def cuMemcpyDtoHAsync(self, dstHost, srcDevice, ByteCount, hStream):
        assert hStream == STREAM
        if self.is_pinned(dstHost, ByteCount):
            self.put(lambda: _copy(self._host(dstHost, ByteCount), self.bytes_at(srcDevice, ByteCount)))
            return
        assert self.capturing is None, "pageable memory in a graph"
        self._run()  # pageable memory is written before the call returns
        _copy(_view(dstHost, ByteCount), self.bytes_at(srcDevice, ByteCount))

    def cuMemcpyDtoDAsync(self, dstDevice, srcDevice, ByteCount, hStream):
        assert hStream == STREAM
        self.calls.append(("copy", ByteCount))
        self.put(lambda: _copy(self.bytes_at(dstDevice, ByteCount), self.bytes_at(srcDevice, ByteCount)))

    def copy_2d(self, target, target_pitch, source, source_pitch, width, height):
        """``cuMemcpy2DAsync`` within the device."""
        assert min(target_pitch, source_pitch) >= width

        def work() -> None:
            for index in range(height):
                piece = self.bytes_at(source + index * source_pitch, width)
                _copy(self.bytes_at(target + index * target_pitch, width), piece)

        self.put(work)

    def cuEventCreate(self, Flags):
        self._check("cuEventCreate")
        self.calls.append(("make an event",))
        number = next(self._numbers)
        self._events[number] = FakeEvent(timed=not Flags & DISABLE_TIMING)
        return number

    def cuEventDestroy(self, hEvent):
        self._check("cuEventDestroy")
        del self._events[hEvent]

    def cuEventRecord(self, hEvent, hStream):
        assert hStream == STREAM
        event = self._events[hEvent]
        event.recorded += 1

        def come_to(number: int = event.recorded) -> None:
            event.reached, event.time = number, time.perf_counter()

        self.put(come_to)

    def cuEventSynchronize(self, hEvent):
        """A wait for what was on the stream when the event was recorded last, and for no more."""
        self.calls.append(("wait for an event",))
        self._check("cuEventSynchronize")
        event = self._events[hEvent]
        assert event.recorded, "an event that was never recorded"
        while event.reached < event.recorded:
            self.queue.pop(0)()

    def cuEventElapsedTime(self, hStart, hEnd):
        start, end = self._events[hStart], self._events[hEnd]
        assert start.timed
        assert end.timed
        assert all(event.recorded and event.reached == event.recorded for event in (start, end))
        return (end.time - start.time) * 1e3

    def cuStreamBeginCapture(self, hStream, mode):
        assert hStream == STREAM
        assert self.capturing is None
        self.calls.append(("begin capture",))
        self.capturing = []

    def cuStreamEndCapture(self, hStream):
        captured, self.capturing = self.capturing, None
        self._check("cuStreamEndCapture")
        assert captured is not None
        number = next(self._numbers)
        self.graphs[number] = captured
        return number

    def cuGraphInstantiate(self, hGraph, flags):
        self._check("cuGraphInstantiate")
        assert flags == 0
        number = next(self._numbers)
        self.executables[number] = self.graphs[hGraph]
        return number

    def cuGraphDestroy(self, hGraph):
        del self.graphs[hGraph]

    def cuGraphExecDestroy(self, hGraphExec):
        del self.executables[hGraphExec]

    def cuGraphLaunch(self, hGraphExec, hStream):
        self._check("cuGraphLaunch")
        graph = self.executables[hGraphExec]  # one that was destroyed is not there
        self.calls.append(("launch",))
        self.put(lambda: [work() for work in graph])


def _view(address: int, count: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address))


def _copy(target: np.ndarray, source: np.ndarray) -> None:
    target[:] = source
