"""A stand-in for PyCUDA and cuda-bindings, on the memory of the host.

It is strict about what it can see: memory that is read or written must be allocated and not freed, in size and in time;
copies and runs happen when the stream is waited for, so what is read too early is wrong; calls need the context to be
current.

It cannot show: speed; what CUDA refuses to capture; races between streams; the real libraries' names and arguments,
which were read in their documentation.
"""

from __future__ import annotations

import ctypes
import itertools
import time
from enum import Enum
from types import ModuleType, SimpleNamespace

import numpy as np

ALIGNMENT = 256


class FakeGpu:
    """The device: its memory, its one context, the work on its stream, and what was asked of it, in order."""

    def __init__(self, memory: int = 1 << 30) -> None:
        self.memory, self.used = memory, 0
        self.allocations: dict[int, int] = {}  # address -> bytes
        self.pinned: list[np.ndarray] = []
        self.current = 0
        self.queue: list = []
        self.capturing: list | None = None
        self.calls: list[tuple] = []
        self._kept: dict[int, np.ndarray] = {}
        self._freed: list[np.ndarray] = []  # while work waits
        self.capture_fails = self.integrated = False

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
        buffer = self._kept.pop(address)
        if self.queue:  # of another thread, perhaps: this address stays unused, so that work that uses it fails
            self._freed.append(buffer)

    def bytes_at(self, address: int, count: int) -> np.ndarray:
        """A view of device memory, which must be there."""
        for start, size in self.allocations.items():
            if start <= address and address + count <= start + size:
                return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address))
        raise AssertionError(f"{count} bytes at {address:#x} are not allocated, or were freed")

    def put(self, work) -> None:
        """Put work on the stream, or into the graph that is being captured."""
        assert self.current == 1, "no context is current, or several are"
        (self.queue if self.capturing is None else self.capturing).append(work)

    def synchronize(self) -> None:
        assert self.current == 1
        assert self.capturing is None, "a wait for the stream cannot be captured"
        self.calls.append(("synchronize",))
        work, self.queue = self.queue, []
        for each in work:
            each()
        if not self.queue:
            self._freed.clear()

    def is_pinned(self, array: np.ndarray) -> bool:
        return any(np.shares_memory(array, pinned) for pinned in self.pinned)


def pycuda_driver(gpu: FakeGpu) -> ModuleType:
    """``pycuda.driver``."""
    driver = ModuleType("pycuda.driver")
    driver.Error = type("Error", (Exception,), {})
    driver.MemoryError = type("MemoryError", (driver.Error, MemoryError), {})

    class Context:
        def push(self) -> None:
            gpu.current += 1

        @staticmethod
        def pop() -> None:
            gpu.current -= 1

    class Device:
        count = staticmethod(lambda: 1)

        def __init__(self, index: int) -> None:
            assert index == 0

        def name(self) -> str:
            return "Fake"

        def get_attribute(self, attribute: str) -> int:
            return {"INTEGRATED": int(gpu.integrated)}[attribute]

        def retain_primary_context(self) -> Context:
            gpu.calls.append(("retain_primary_context",))
            return Context()

    class Allocation:
        def __init__(self, address: int) -> None:
            self._address = address

        def __int__(self) -> int:
            return self._address

        def __del__(self) -> None:
            gpu.free(self._address)

    class Stream:
        handle = 7

        def __init__(self) -> None:
            assert gpu.current == 1

        synchronize = staticmethod(gpu.synchronize)

    class Event:
        """Holds the time at which the stream came to it. Whoever waits for it waits for what was on the stream when it
        was recorded last, and for nothing behind that."""

        def __init__(self, flags: str = "") -> None:
            assert flags in ("", "DISABLE_TIMING")
            assert gpu.current == 1, "no context is current, or several are"
            gpu.calls.append(("make an event",))
            self.recorded = self.reached = 0
            self.time: float | None = None

        def record(self, stream: Stream) -> None:
            assert isinstance(stream, Stream)
            self.recorded += 1
            gpu.put(lambda number=self.recorded: self._come_to(number))

        def _come_to(self, number: int) -> None:
            self.reached, self.time = number, time.perf_counter()

        def synchronize(self) -> None:
            gpu.calls.append(("wait for an event",))
            assert gpu.current == 1
            assert self.recorded, "an event that was never recorded"
            while self.reached < self.recorded:
                gpu.queue.pop(0)()

        def time_till(self, event: Event) -> float:
            return (event.time - self.time) * 1e3

    class Memcpy2D:
        def set_src_device(self, address: int) -> None:
            self.source = address

        def set_dst_device(self, address: int) -> None:
            self.target = address

        def __call__(self, stream: Stream) -> None:
            assert isinstance(stream, Stream)
            source, target, width, height = self.source, self.target, self.width_in_bytes, self.height
            pitches = (self.src_pitch, self.dst_pitch)
            assert min(pitches) >= width

            def work() -> None:
                for index in range(height):
                    piece = gpu.bytes_at(source + index * pitches[0], width)
                    gpu.bytes_at(target + index * pitches[1], width)[:] = piece

            gpu.put(work)

    def mem_alloc(bytes: int) -> Allocation:
        assert gpu.current == 1
        if gpu.used + bytes > gpu.memory:
            raise driver.MemoryError("cuMemAlloc failed: out of memory")
        return Allocation(gpu.allocate(bytes))

    def pagelocked_empty(shape, dtype) -> np.ndarray:
        gpu.pinned.append(np.empty(shape, dtype))
        return gpu.pinned[-1]

    def memcpy_htod_async(address: int, array: np.ndarray, stream: Stream) -> None:
        assert isinstance(stream, Stream)
        assert array.flags.c_contiguous
        held = array if gpu.is_pinned(array) else array.copy()  # pageable memory is read before the call returns
        assert gpu.capturing is None or held is array, "pageable memory in a graph"
        gpu.put(lambda: gpu.bytes_at(address, held.nbytes).__setitem__(slice(None), held.reshape(-1).view(np.uint8)))

    def memcpy_dtoh_async(array: np.ndarray, address: int, stream: Stream) -> None:
        assert isinstance(stream, Stream)
        assert array.flags.c_contiguous
        assert gpu.capturing is None or gpu.is_pinned(array), "pageable memory in a graph"
        gpu.put(lambda: array.reshape(-1).view(np.uint8).__setitem__(slice(None), gpu.bytes_at(address, array.nbytes)))

    def memcpy_dtod_async(target: int, source: int, count: int, stream: Stream) -> None:
        assert isinstance(stream, Stream)
        assert count < 1 << 32
        gpu.calls.append(("copy", count))
        gpu.put(lambda: gpu.bytes_at(target, count).__setitem__(slice(None), gpu.bytes_at(source, count)))

    def memset_d8_async(address: int, value: int, count: int, stream: Stream) -> None:
        assert isinstance(stream, Stream)
        gpu.put(lambda: gpu.bytes_at(address, count).fill(value))

    def copy_now(target, source) -> None:
        raise AssertionError("a copy that is not put on the stream")

    driver.memcpy_htod = driver.memcpy_dtoh = copy_now
    driver.init = lambda: None
    driver.device_attribute = SimpleNamespace(INTEGRATED="INTEGRATED")
    driver.Device, driver.Context, driver.Stream, driver.Memcpy2D = Device, Context, Stream, Memcpy2D
    driver.Event, driver.event_flags = Event, SimpleNamespace(DISABLE_TIMING="DISABLE_TIMING")
    driver.mem_alloc, driver.pagelocked_empty = mem_alloc, pagelocked_empty
    driver.mem_get_info = lambda: (gpu.memory - gpu.used, gpu.memory)
    driver.memcpy_htod_async, driver.memcpy_dtoh_async = memcpy_htod_async, memcpy_dtoh_async
    driver.memset_d8_async, driver.memcpy_dtod_async = memset_d8_async, memcpy_dtod_async
    return driver


def cuda_bindings_driver(gpu: FakeGpu) -> ModuleType:
    """``cuda.bindings.driver``: every call returns a tuple that begins with its status."""
    bindings = ModuleType("cuda.bindings.driver")
    bindings.CUresult = Enum("CUresult", ["CUDA_SUCCESS", "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"])
    bindings.CUstreamCaptureMode = Enum("CUstreamCaptureMode", ["CU_STREAM_CAPTURE_MODE_RELAXED"])
    bindings.CUstream = int
    success = bindings.CUresult.CUDA_SUCCESS

    def begin(stream: int, mode) -> tuple:
        assert stream == 7
        assert gpu.capturing is None
        gpu.calls.append(("begin capture",))
        gpu.capturing = []
        return (success,)

    def end(stream: int) -> tuple:
        captured, gpu.capturing = gpu.capturing, None
        if gpu.capture_fails:
            return (bindings.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, None)
        return (success, captured)

    numbers, executables = itertools.count(1), {}

    def instantiate(graph: list, flags: int) -> tuple:
        number = next(numbers)
        executables[number] = graph
        return (success, number)

    def destroy(executable: int) -> tuple:
        del executables[executable]
        return (success,)

    def launch(executable: int, stream: int) -> tuple:
        graph = executables[executable]  # one that was destroyed is not there
        gpu.calls.append(("launch",))
        gpu.put(lambda: [work() for work in graph])
        return (success,)

    def wait(stream: int) -> tuple:
        gpu.calls.append(("wait for", stream))
        return (success,)

    bindings.cuStreamBeginCapture, bindings.cuStreamEndCapture, bindings.cuGraphLaunch = begin, end, launch
    bindings.cuGraphInstantiate, bindings.cuGraphExecDestroy = instantiate, destroy
    bindings.cuGraphDestroy = lambda graph: (success,)
    bindings.cuStreamSynchronize = wait
    return bindings
