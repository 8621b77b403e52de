"""A stand-in for PyCUDA on a `FakeGpu`."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from fake_gpu import CONTEXT, DISABLE_TIMING, STREAM, FakeGpu, Refused


class OfDriver:
    """A class of the ``driver`` for one GPU, once `pycuda` has bound it."""

    driver: Any
    gpu: FakeGpu

    @classmethod
    def call(cls, function: Callable, *arguments):
        driver = cls.driver
        kinds = {"CUDA_ERROR_OUT_OF_MEMORY": driver.MemoryError, "CUDA_ERROR_NO_DEVICE": driver.RuntimeError}
        try:
            return function(*arguments)
        except Refused as refused:
            raise kinds.get(refused.status, driver.LogicError)(str(refused)) from None


class Context(OfDriver):
    _valid = True

    def push(self) -> None:
        self.call(self.gpu.cuCtxPushCurrent, CONTEXT)

    @classmethod
    def pop(cls) -> None:
        cls.call(cls.gpu.cuCtxPopCurrent)

    @classmethod
    def synchronize(cls) -> None:
        cls.call(cls.gpu.cuCtxSynchronize)

    def detach(self) -> None:
        """Releases a primary context that is current, and leaves it current."""
        assert self.gpu.current
        self.gpu.cuDevicePrimaryCtxRelease(3)
        self._valid = False

    def __del__(self) -> None:
        if self._valid:
            warnings.warn("PyCUDA WARNING: a clean-up operation failed: cuCtxDetach", stacklevel=2)


class Device(OfDriver):
    def __init__(self, index: int) -> None:
        self._device = self.call(self.gpu.cuDeviceGet, index)

    @classmethod
    def count(cls) -> int:
        return cls.call(cls.gpu.cuDeviceGetCount)

    def name(self) -> str:
        return self.call(self.gpu.cuDeviceGetName, 256, self._device).partition(b"\0")[0].decode()

    def total_memory(self) -> int:
        return self.call(self.gpu.cuDeviceTotalMem, self._device)

    def get_attribute(self, attribute: int) -> int:
        return self.call(self.gpu.cuDeviceGetAttribute, attribute, self._device)

    def retain_primary_context(self) -> Context:
        self.call(self.gpu.cuDevicePrimaryCtxRetain, self._device)
        return self.driver.Context()


class Dependent(OfDriver):
    """Belongs to a context: in a thread that did not make it, it is freed only where the context is current."""

    handle: int | None = None  # until it is made

    def __init__(self, handle: int, free: Callable) -> None:
        self.handle, self._free, self._thread = handle, free, threading.get_ident()

    def __del__(self) -> None:
        gpu = self.gpu
        if self.handle is None:
            return
        if gpu.current:
            self._free(self.handle)
        elif threading.get_ident() != self._thread:
            warnings.warn(f"{type(self).__name__} in out-of-thread context could not be cleaned up", stacklevel=2)
        elif gpu.retained:
            gpu.cuCtxPushCurrent(CONTEXT)
            self._free(self.handle)
            gpu.cuCtxPopCurrent()


class DeviceAllocation(Dependent):
    def __int__(self) -> int:
        assert self.handle is not None
        return self.handle


class PagelockedHostAllocation(Dependent):
    def __init__(self, handle: int, bytes: int) -> None:
        super().__init__(handle, self.gpu.cuMemFreeHost)
        self.__array_interface__ = {"data": (handle, False), "shape": (bytes,), "typestr": "|u1", "version": 3}


class Stream(Dependent):
    def __init__(self, flags: int = 0) -> None:
        super().__init__(self.call(self.gpu.cuStreamCreate, flags), self.gpu.cuStreamDestroy)

    def synchronize(self) -> None:
        self.call(self.gpu.cuStreamSynchronize, self.handle)


class Event(Dependent):
    def __init__(self, flags: int = 0) -> None:
        super().__init__(self.call(self.gpu.cuEventCreate, flags), self.gpu.cuEventDestroy)

    def record(self, stream: Stream) -> Event:
        self.call(self.gpu.cuEventRecord, self.handle, _handle(stream))
        return self

    def synchronize(self) -> Event:
        self.call(self.gpu.cuEventSynchronize, self.handle)
        return self

    def time_till(self, event: Event) -> float:
        return self.call(self.gpu.cuEventElapsedTime, self.handle, event.handle)


class Memcpy2D(OfDriver):
    """No other attributes than it has."""

    __slots__ = ("_source", "_target", "dst_pitch", "height", "src_pitch", "width_in_bytes")

    def set_src_device(self, address: int) -> None:
        self._source = address

    def set_dst_device(self, address: int) -> None:
        self._target = address

    def __call__(self, stream: Stream) -> None:
        assert _handle(stream) == STREAM
        self.gpu.copy_2d(
            self._target, self.dst_pitch, self._source, self.src_pitch, self.width_in_bytes, self.height
        )


class Functions(OfDriver):
    def init(self, flags: int = 0) -> None:
        self.call(self.gpu.cuInit, flags)

    def get_version(self) -> tuple[int, int, int]:
        return 13, 0, 0

    def get_driver_version(self) -> int:
        return self.call(self.gpu.cuDriverGetVersion)

    def mem_get_info(self) -> tuple[int, int]:
        return self.call(self.gpu.cuMemGetInfo)

    def mem_alloc(self, bytes: int) -> DeviceAllocation:
        return self.driver.DeviceAllocation(self.call(self.gpu.cuMemAlloc, bytes), self.gpu.cuMemFree)

    def pagelocked_empty(self, shape, dtype) -> np.ndarray:
        bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = self.driver.PagelockedHostAllocation(self.call(self.gpu.cuMemHostAlloc, bytes, 0), bytes)
        return np.asarray(memory).view(dtype).reshape(shape)

    def memcpy_htod_async(self, dest: int, src: np.ndarray, stream: Stream) -> None:
        assert src.flags.c_contiguous
        self.call(self.gpu.cuMemcpyHtoDAsync, dest, src.ctypes.data, src.nbytes, _handle(stream))

    def memcpy_dtoh_async(self, dest: np.ndarray, src: int, stream: Stream) -> None:
        assert dest.flags.c_contiguous
        assert dest.flags.writeable
        self.call(self.gpu.cuMemcpyDtoHAsync, dest.ctypes.data, src, dest.nbytes, _handle(stream))

    def memcpy_dtod_async(self, dest: int, src: int, size: int, stream: Stream) -> None:
        self.call(self.gpu.cuMemcpyDtoDAsync, dest, src, size, _handle(stream))

    def memset_d8_async(self, dest: int, data: int, size: int, stream: Stream) -> None:
        self.call(self.gpu.cuMemsetD8Async, dest, data, size, _handle(stream))


FUNCTIONS = tuple(name for name in vars(Functions) if not name.startswith("_"))
CLASSES = (Context, Device, DeviceAllocation, PagelockedHostAllocation, Stream, Event, Memcpy2D)


def _handle(stream: Stream) -> int:
    assert isinstance(stream, Stream)
    assert stream.handle is not None
    return stream.handle


def pycuda(gpu: FakeGpu) -> ModuleType:
    """``pycuda``, with ``driver``."""
    package, driver = ModuleType("pycuda"), ModuleType("pycuda.driver")
    package.VERSION_TEXT, package.driver = "2026.1", driver
    driver.Error = type("Error", (Exception,), {})
    for name in ("MemoryError", "LogicError", "LaunchError", "RuntimeError"):
        setattr(driver, name, type(name, (driver.Error,), {}))
    driver.device_attribute = SimpleNamespace(
        INTEGRATED=18, COMPUTE_CAPABILITY_MAJOR=75, COMPUTE_CAPABILITY_MINOR=76
    )
    driver.event_flags = SimpleNamespace(DEFAULT=0, DISABLE_TIMING=DISABLE_TIMING)
    for kind in (*CLASSES, Functions):
        bound = type(kind.__name__, (kind,), {"driver": driver, "gpu": gpu})
        if kind is not Functions:
            setattr(driver, kind.__name__, bound)
    functions = bound()
    for name in FUNCTIONS:
        setattr(driver, name, getattr(functions, name))
    return package
