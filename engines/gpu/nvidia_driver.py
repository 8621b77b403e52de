"""The driver of this machine's NVIDIA GPU, and the GPU as it describes it.

It is asked through PyCUDA where that can be imported, else through cuda-bindings. Without either, all that is known is
whether a driver is installed.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from flamingo_rt.engines.gpu.cuda_bindings_driver import CudaBindingsDriver
from flamingo_rt.engines.gpu.cuda_driver import CudaDriver, DriverError, NoDeviceError
from flamingo_rt.engines.gpu.pycuda_driver import PyCudaDriver
from flamingo_rt.errors import DependencyError

LIBRARIES = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")
OLDEST_CUDA = 12000  # for which there are libraries that the extras take


@dataclass(frozen=True)
class Gpu:
    """A GPU: ``capability`` is its compute capability, such as ``8.7``; an ``integrated`` one (Jetson) uses the
    machine's memory."""

    name: str
    capability: str
    memory_bytes: int
    integrated: bool


def open_driver() -> CudaDriver:
    """Start the driver, called through the library that there is.

    Raises `DependencyError` without either library, without a GPU, and where the driver does not start.
    """
    driver = _import_driver()
    try:
        driver.init()
    except NoDeviceError as error:
        raise DependencyError(f"CUDA finds no GPU ({error}): look at nvidia-smi and CUDA_VISIBLE_DEVICES") from error
    except DriverError as error:
        if not _is_installed():
            raise DependencyError(f"no NVIDIA driver is found here ({LIBRARIES[0]}): CUDA needs a GPU and its driver") \
                from error
        remedy = too_old(driver) or "look at nvidia-smi, or update the driver"
        raise DependencyError(f"CUDA does not start through {driver.library} ({error}): {remedy}") from error
    return driver


def too_old(driver: CudaDriver) -> str | None:
    """Text about a driver that is older than the library which calls it, with what helps; None where it is not, or its
    version cannot be had."""
    try:
        library, newest = driver.versions()
    except DriverError:
        return None
    if newest // 1000 >= library // 1000:
        return None  # within one major version CUDA's interface only grows
    older = f", or {driver.older.format(major=newest // 1000)}" if newest >= OLDEST_CUDA else ""
    return f"the driver has CUDA {_version(newest)}, {driver.library} is for {_version(library)}: update it{older}"


def find_gpu() -> Gpu | None:
    """The first GPU that the driver shows. None where there is none, or it cannot be asked for (`obstacle`)."""
    try:
        device = open_driver().device()
    except (DependencyError, DriverError):
        return None
    return Gpu(device.name, "{}.{}".format(*device.capability), device.memory_bytes, device.integrated)


def obstacle() -> str | None:
    """The reason why an installed driver shows no GPU, with what helps. None where no driver is installed."""
    if not _is_installed():
        return None
    try:
        open_driver()
    except DependencyError as error:
        return str(error)
    return None


def required_gpu(backend: str) -> Gpu:
    """The first GPU, for a ``backend`` that needs one. Raises `DependencyError` where there is none."""
    gpu = find_gpu()
    if gpu is not None:
        return gpu
    reason = obstacle()
    if reason is not None:
        raise DependencyError(f"the {backend} backend needs an NVIDIA GPU: {reason}")
    raise DependencyError(f"no NVIDIA GPU is found: the {backend} backend needs one and its driver")


def _import_driver() -> CudaDriver:
    refused = []
    for kind in (PyCudaDriver, CudaBindingsDriver):
        try:
            return kind()
        except ImportError as error:
            refused.append(str(error))
    raise DependencyError(
        f"neither PyCUDA nor cuda-bindings can be imported ({'; '.join(refused)}): pip install 'flamingo-rt[cuda]', "
        "on a machine with an NVIDIA driver"
    )


def _is_installed() -> bool:
    """Whether the driver's library loads. Nothing in it is called."""
    for name in LIBRARIES:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
