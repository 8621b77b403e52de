"""The NVIDIA GPU of this machine, as its driver describes it; no library but the driver's is needed."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from flamingo_rt.errors import DependencyError

LIBRARIES = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")
# CUdevice_attribute of cuda.h.
INTEGRATED, MAJOR, MINOR = 18, 75, 76


@dataclass(frozen=True)
class Gpu:
    """A GPU: ``capability`` is its compute capability, such as ``8.7``; an ``integrated`` one (Jetson) uses the
    machine's memory."""

    name: str
    capability: str
    memory_bytes: int
    integrated: bool


def find_gpu() -> Gpu | None:
    """The first GPU that the driver shows, or None where there is no driver or no GPU."""
    for name in LIBRARIES:
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        return _first(driver)
    return None


def required_gpu(backend: str) -> Gpu:
    """The first GPU, for a ``backend`` that needs one. Raises `DependencyError` where there is none."""
    gpu = find_gpu()
    if gpu is None:
        raise DependencyError(f"no NVIDIA GPU is found: the {backend} backend needs one and its driver")
    return gpu


def _first(driver: ctypes.CDLL) -> Gpu | None:
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    if driver.cuDeviceGetName(name, len(name), device) or driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device):
        return None

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        return 0 if driver.cuDeviceGetAttribute(ctypes.byref(value), number, device) else value.value

    capability = f"{attribute(MAJOR)}.{attribute(MINOR)}"
    return Gpu(name.value.decode(errors="replace"), capability, memory.value, bool(attribute(INTEGRATED)))
