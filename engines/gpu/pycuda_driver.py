"""CUDA's driver through PyCUDA, and its CUDA graphs, which PyCUDA does not have, through cuda-bindings where that is
installed too. Tried with PyCUDA 2026.1.

PyCUDA frees nothing in a thread that did not make the context, unless the context is current there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from flamingo_rt.engines.gpu.cuda_bindings_driver import CapturedGraph, CudaBindings
from flamingo_rt.engines.gpu.cuda_driver import Device, DriverError, NoDeviceError, OutOfMemoryError

NO_DEVICE = "no CUDA-capable device"  # CUDA_ERROR_NO_DEVICE, as the driver puts it; PyCUDA keeps no status


class PyCudaDriver:
    """`CudaDriver` on PyCUDA."""

    _context: Any = None  # until `open`
    older = "compile PyCUDA again, with the toolkit of CUDA {major}"

    def __init__(self) -> None:
        """Raises `ImportError` where PyCUDA cannot be imported: its extension links to the driver, so a missing driver
        ends here too."""
        import pycuda
        import pycuda.driver as driver

        self._driver, self._translated = driver, _Translated(driver)
        self.library = f"PyCUDA {pycuda.VERSION_TEXT}"
        self._bindings: CudaBindings | None = None
        with contextlib.suppress(ImportError):
            self._bindings = CudaBindings()
        self.captures = self._bindings is not None

    def __del__(self) -> None:
        if self._context is None:
            return
        # A primary context that is left to its end calls cuCtxDetach, which fails; detached in time it is released,
        # and stays current in the thread, until that is undone by what PyCUDA has no function for.
        with contextlib.suppress(DriverError):
            self.push()
            with self._translated:
                self._context.detach()
            if self._bindings is not None:
                self._bindings.call("cuCtxPopCurrent")

    def init(self) -> None:
        """See `CudaDriver.init`."""
        with self._translated:
            self._driver.init()
            if not self._driver.Device.count():
                raise NoDeviceError("Device.count gives 0")
            self._device = self._driver.Device(0)

    def versions(self) -> tuple[int, int]:
        """See `CudaDriver.versions`."""
        with self._translated:
            major, minor, _ = self._driver.get_version()
            return 1000 * major + 10 * minor, int(self._driver.get_driver_version())

    def device(self) -> Device:
        """See `CudaDriver.device`."""
        device, attributes = self._device, self._driver.device_attribute
        with self._translated:
            major, minor, integrated = (int(device.get_attribute(attribute)) for attribute in (
                attributes.COMPUTE_CAPABILITY_MAJOR, attributes.COMPUTE_CAPABILITY_MINOR, attributes.INTEGRATED
            ))
            return Device(str(device.name()), (major, minor), int(device.total_memory()), bool(integrated))

    def open(self) -> None:
        """See `CudaDriver.open`."""
        with self._translated:
            self._context = self._device.retain_primary_context()

    def push(self) -> None:
        """See `CudaDriver.push`."""
        with self._translated:
            self._context.push()

    def pop(self) -> None:
        """See `CudaDriver.pop`."""
        with self._translated:
            self._driver.Context.pop()

    def stream(self) -> tuple[Any, int]:
        """See `CudaDriver.stream`."""
        with self._translated:
            stream = self._driver.Stream()
            return stream, int(stream.handle)

    def memory_info(self) -> tuple[int, int]:
        """See `CudaDriver.memory_info`."""
        with self._translated:
            free, total = self._driver.mem_get_info()
            return int(free), int(total)

    def allocate(self, bytes: int) -> tuple[Any, int]:
        """See `CudaDriver.allocate`."""
        with self._translated:
            memory = self._driver.mem_alloc(bytes)
            return memory, int(memory)

    def pinned(self, bytes: int) -> tuple[Any, int]:
        """See `CudaDriver.pinned`."""
        with self._translated:
            memory = self._driver.pagelocked_empty((bytes,), np.uint8)
            return memory, int(memory.ctypes.data)

    def zero(self, address: int, bytes: int, stream: Any) -> None:
        """See `CudaDriver.zero`."""
        with self._translated:
            self._driver.memset_d8_async(address, 0, bytes, stream)

    def upload(self, address: int, array: np.ndarray, stream: Any) -> None:
        """See `CudaDriver.upload`."""
        with self._translated:
            self._driver.memcpy_htod_async(address, array, stream)

    def download(self, array: np.ndarray, address: int, stream: Any) -> None:
        """See `CudaDriver.download`."""
        with self._translated:
            self._driver.memcpy_dtoh_async(array, address, stream)

    def copy(self, target: int, source: int, bytes: int, stream: Any) -> None:
        """See `CudaDriver.copy`."""
        with self._translated:
            self._driver.memcpy_dtod_async(target, source, bytes, stream)

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int, stream: Any
    ) -> None:
        """See `CudaDriver.copy_rows`."""
        with self._translated:
            copy = self._driver.Memcpy2D()
            copy.set_src_device(source)
            copy.set_dst_device(target)
            copy.src_pitch, copy.dst_pitch = source_pitch, target_pitch
            copy.width_in_bytes, copy.height = width, height
            copy(stream)

    def synchronize(self, stream: Any) -> None:
        """See `CudaDriver.synchronize`."""
        with self._translated:
            stream.synchronize()

    def wait_for(self, handle: int) -> None:
        """See `CudaDriver.wait_for`. PyCUDA knows its own streams alone: without cuda-bindings, wait for all."""
        if self._bindings is not None:
            self._bindings.wait_for(handle)
            return
        with self._translated:
            self._driver.Context.synchronize()

    def event(self, timed: bool) -> Any:
        """See `CudaDriver.event`."""
        flags = self._driver.event_flags
        with self._translated:
            return self._driver.Event(flags.DEFAULT if timed else flags.DISABLE_TIMING)

    def record(self, event: Any, stream: Any) -> None:
        """See `CudaDriver.record`."""
        with self._translated:
            event.record(stream)

    def wait(self, event: Any) -> None:
        """See `CudaDriver.wait`."""
        with self._translated:
            event.synchronize()

    def milliseconds(self, start: Any, end: Any) -> float:
        """See `CudaDriver.milliseconds`."""
        with self._translated:
            return float(start.time_till(end))

    def capture(self, enqueue: Callable[[], None], stream: Any) -> CapturedGraph:
        """See `CudaDriver.capture`."""
        assert self._bindings is not None
        return self._bindings.capture(enqueue, int(stream.handle))


class _Translated:
    """Errors of PyCUDA inside the block are raised as `DriverError`."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, self._driver.MemoryError):
            raise OutOfMemoryError(str(error)) from error
        if isinstance(error, self._driver.Error):
            raise (NoDeviceError if NO_DEVICE in str(error) else DriverError)(str(error)) from error
