"""CUDA's driver through cuda-bindings, NVIDIA's wheels that need no compiler. Names and arguments are those of cuda.h;
every call returns a tuple that begins with its status. Tried with cuda-bindings 12.8 and 13.5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flamingo_rt.engines.gpu.cuda_driver import Device, DriverError, NoDeviceError, OutOfMemoryError

NAME_BYTES = 256  # at most, of a GPU's name


class CudaBindings:
    """The module with the driver's functions, and CUDA graphs made by it, for a stream of any library."""

    def __init__(self) -> None:
        """Raises `ImportError` where cuda-bindings is not installed."""
        import cuda.bindings
        from cuda.bindings import driver

        self.module, self.version = driver, str(cuda.bindings.__version__)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function. Returns what it returns behind the status: None, one value, or a tuple of several. Raises
        `DriverError` unless it succeeds."""
        module = self.module
        try:
            status, *values = getattr(module, name)(*arguments)
        except (RuntimeError, ValueError) as error:  # no driver, one without this function, or a status of a newer one
            raise DriverError(f"{name} failed: {error}") from error
        statuses = module.CUresult
        if status != statuses.CUDA_SUCCESS:
            kinds = {statuses.CUDA_ERROR_OUT_OF_MEMORY: OutOfMemoryError, statuses.CUDA_ERROR_NO_DEVICE: NoDeviceError}
            raise kinds.get(status, DriverError)(f"{name} failed: {status.name}")
        return tuple(values) if len(values) > 1 else values[0] if values else None

    def capture(self, enqueue: Callable[[], None], handle: int) -> CapturedGraph:
        """See `CudaDriver.capture`; the stream is that of a ``handle``."""
        module, stream = self.module, self.module.CUstream(handle)
        # Relaxed, as Python may free device memory during the capture, on any thread: the other modes forbid that.
        self.call("cuStreamBeginCapture", stream, module.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
        try:
            enqueue()
        except BaseException:  # a stream must not stay in capture mode
            status, captured = module.cuStreamEndCapture(stream)
            if status == module.CUresult.CUDA_SUCCESS:
                module.cuGraphDestroy(captured)
            raise
        captured = self.call("cuStreamEndCapture", stream)
        try:
            executable = self.call("cuGraphInstantiate", captured, 0)
        finally:
            module.cuGraphDestroy(captured)
        return CapturedGraph(self, executable, stream)

    def wait_for(self, handle: int) -> None:
        """See `CudaDriver.wait_for`."""
        self.call("cuStreamSynchronize", self.module.CUstream(handle))


class _Handle:
    """A handle of the driver's, which the function ``destroy`` frees with its last reference."""

    def __init__(self, bindings: CudaBindings, handle: Any, destroy: str) -> None:
        self.handle, self._destroy = handle, getattr(bindings.module, destroy)

    def __del__(self) -> None:
        self._destroy(self.handle)  # a failure leaves nothing to do


class CapturedGraph(_Handle):
    """`CapturedWork`, an executable CUDA graph."""

    def __init__(self, bindings: CudaBindings, executable: Any, stream: Any) -> None:
        super().__init__(bindings, executable, "cuGraphExecDestroy")
        self._bindings, self._stream = bindings, stream

    def launch(self) -> None:
        """See `CapturedWork.launch`."""
        self._bindings.call("cuGraphLaunch", self.handle, self._stream)


class CudaBindingsDriver:
    """`CudaDriver` on cuda-bindings alone."""

    older = "pip install 'cuda-bindings=={major}.*'"
    captures = True

    def __init__(self) -> None:
        """Raises `ImportError` where cuda-bindings is not installed."""
        self._bindings = CudaBindings()
        self._call, self._module = self._bindings.call, self._bindings.module
        self.library = f"cuda-bindings {self._bindings.version}"

    def init(self) -> None:
        """See `CudaDriver.init`."""
        self._call("cuInit", 0)
        if not self._call("cuDeviceGetCount"):
            raise NoDeviceError("cuDeviceGetCount gives 0")
        self._device = self._call("cuDeviceGet", 0)

    def versions(self) -> tuple[int, int]:
        """See `CudaDriver.versions`."""
        return int(self._module.CUDA_VERSION), int(self._call("cuDriverGetVersion"))

    def device(self) -> Device:
        """See `CudaDriver.device`."""
        name: bytes = self._call("cuDeviceGetName", NAME_BYTES, self._device)
        return Device(
            name.partition(b"\0")[0].decode(errors="replace"),
            (self._attribute("COMPUTE_CAPABILITY_MAJOR"), self._attribute("COMPUTE_CAPABILITY_MINOR")),
            int(self._call("cuDeviceTotalMem", self._device)), bool(self._attribute("INTEGRATED")),
        )

    def _attribute(self, name: str) -> int:
        attribute = getattr(self._module.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self._call("cuDeviceGetAttribute", attribute, self._device))

    def open(self) -> None:
        """See `CudaDriver.open`."""
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self._retained = _Handle(self._bindings, self._device, "cuDevicePrimaryCtxRelease")

    def push(self) -> None:
        """See `CudaDriver.push`."""
        self._call("cuCtxPushCurrent", self._context)

    def pop(self) -> None:
        """See `CudaDriver.pop`."""
        self._call("cuCtxPopCurrent")

    def stream(self) -> tuple[_Handle, int]:
        """See `CudaDriver.stream`."""
        stream = _Handle(self._bindings, self._call("cuStreamCreate", 0), "cuStreamDestroy")
        return stream, int(stream.handle)

    def memory_info(self) -> tuple[int, int]:
        """See `CudaDriver.memory_info`."""
        free, total = self._call("cuMemGetInfo")
        return int(free), int(total)

    def allocate(self, bytes: int) -> tuple[_Handle, int]:
        """See `CudaDriver.allocate`."""
        memory = _Handle(self._bindings, self._call("cuMemAlloc", bytes), "cuMemFree")
        return memory, int(memory.handle)

    def pinned(self, bytes: int) -> tuple[_Handle, int]:
        """See `CudaDriver.pinned`."""
        memory = _Handle(self._bindings, self._call("cuMemHostAlloc", bytes, 0), "cuMemFreeHost")
        return memory, int(memory.handle)

    def zero(self, address: int, bytes: int, stream: _Handle) -> None:
        """See `CudaDriver.zero`."""
        self._call("cuMemsetD8Async", address, 0, bytes, stream.handle)

    def upload(self, address: int, array: np.ndarray, stream: _Handle) -> None:
        """See `CudaDriver.upload`."""
        self._call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, stream.handle)

    def download(self, array: np.ndarray, address: int, stream: _Handle) -> None:
        """See `CudaDriver.download`."""
        self._call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, stream.handle)

    def copy(self, target: int, source: int, bytes: int, stream: _Handle) -> None:
        """See `CudaDriver.copy`."""
        self._call("cuMemcpyDtoDAsync", target, source, bytes, stream.handle)

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int, stream: _Handle
    ) -> None:
        """See `CudaDriver.copy_rows`."""
        copy, device = self._module.CUDA_MEMCPY2D(), self._module.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.srcMemoryType, copy.srcDevice, copy.srcPitch = device, source, source_pitch
        copy.dstMemoryType, copy.dstDevice, copy.dstPitch = device, target, target_pitch
        copy.WidthInBytes, copy.Height = width, height
        self._call("cuMemcpy2DAsync", copy, stream.handle)

    def synchronize(self, stream: _Handle) -> None:
        """See `CudaDriver.synchronize`."""
        self._call("cuStreamSynchronize", stream.handle)

    def wait_for(self, handle: int) -> None:
        """See `CudaDriver.wait_for`."""
        self._bindings.wait_for(handle)

    def event(self, timed: bool) -> _Handle:
        """See `CudaDriver.event`."""
        flags = self._module.CUevent_flags
        flag = flags.CU_EVENT_DEFAULT if timed else flags.CU_EVENT_DISABLE_TIMING
        return _Handle(self._bindings, self._call("cuEventCreate", int(flag)), "cuEventDestroy")

    def record(self, event: _Handle, stream: _Handle) -> None:
        """See `CudaDriver.record`."""
        self._call("cuEventRecord", event.handle, stream.handle)

    def wait(self, event: _Handle) -> None:
        """See `CudaDriver.wait`."""
        self._call("cuEventSynchronize", event.handle)

    def milliseconds(self, start: _Handle, end: _Handle) -> float:
        """See `CudaDriver.milliseconds`."""
        return float(self._call("cuEventElapsedTime", start.handle, end.handle))

    def capture(self, enqueue: Callable[[], None], stream: _Handle) -> CapturedGraph:
        """See `CudaDriver.capture`."""
        return self._bindings.capture(enqueue, int(stream.handle))
