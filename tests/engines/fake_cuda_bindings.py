"""A stand-in for cuda-bindings on a `FakeGpu`: every call returns a tuple that begins with its status."""

from __future__ import annotations

import functools
from enum import Enum, IntEnum
from types import ModuleType

from fake_gpu import STATUSES, STREAM, FakeGpu, Refused

FUNCTIONS = (
    "cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceTotalMem",
    "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease", "cuCtxPushCurrent",
    "cuCtxPopCurrent", "cuStreamCreate", "cuStreamDestroy", "cuStreamSynchronize", "cuMemGetInfo", "cuMemAlloc",
    "cuMemFree", "cuMemHostAlloc", "cuMemFreeHost", "cuMemsetD8Async", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync",
    "cuMemcpyDtoDAsync", "cuEventCreate", "cuEventDestroy", "cuEventRecord", "cuEventSynchronize",
    "cuEventElapsedTime", "cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphDestroy",
    "cuGraphExecDestroy", "cuGraphLaunch",
)
DEVICE = 2  # CU_MEMORYTYPE_DEVICE


class Memcpy2D:
    """``CUDA_MEMCPY2D``: no other members than it has."""

    __slots__ = ("Height", "WidthInBytes", "dstDevice", "dstMemoryType", "dstPitch", "srcDevice", "srcMemoryType",
                 "srcPitch")


def cuda_bindings(gpu: FakeGpu) -> ModuleType:
    """``cuda.bindings``, with ``driver``."""
    package, driver = ModuleType("cuda.bindings"), ModuleType("cuda.bindings.driver")
    package.__version__, package.driver = "13.0.0", driver
    driver.CUDA_VERSION = 13000
    driver.CUresult = IntEnum("CUresult", {name: number for name, (number, _) in STATUSES.items()})
    driver.CUstreamCaptureMode = IntEnum("CUstreamCaptureMode", {"CU_STREAM_CAPTURE_MODE_RELAXED": 2})
    driver.CUmemorytype = IntEnum("CUmemorytype", {"CU_MEMORYTYPE_DEVICE": DEVICE})
    driver.CUevent_flags = IntEnum("CUevent_flags", {"CU_EVENT_DEFAULT": 0, "CU_EVENT_DISABLE_TIMING": 2})
    driver.CUdevice_attribute = Enum("CUdevice_attribute", {
        "CU_DEVICE_ATTRIBUTE_INTEGRATED": 18, "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR": 75,
        "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR": 76,
    }, type=int)
    driver.CUstream, driver.CUDA_MEMCPY2D = int, Memcpy2D

    def cuMemcpy2DAsync(pCopy, hStream):
        assert hStream == STREAM
        assert pCopy.srcMemoryType == pCopy.dstMemoryType == DEVICE
        gpu.copy_2d(
            pCopy.dstDevice, pCopy.dstPitch, pCopy.srcDevice, pCopy.srcPitch, pCopy.WidthInBytes, pCopy.Height
        )

    for function in (cuMemcpy2DAsync, *(getattr(gpu, name) for name in FUNCTIONS)):
        setattr(driver, function.__name__, _with_status(function, driver.CUresult))
    return package


def _with_status(function, statuses):
    @functools.wraps(function)
    def call(*arguments):
        try:
            value = function(*arguments)
        except Refused as refused:
            return statuses[refused.status], None
        values = value if isinstance(value, tuple) else () if value is None else (value,)
        return statuses.CUDA_SUCCESS, *values

    return call
