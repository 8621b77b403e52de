"""Devices that PyTorch computes on: the CPU and NVIDIA GPUs, why one cannot be used, and what the torch backend asks of
it.

PyTorch alone is needed for a GPU: memory, streams and CUDA graphs are its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from flamingo_rt.engines.gpu.nvidia_driver import find_gpu
from flamingo_rt.errors import DataError, DependencyError, UsageError

CPU, CUDA = "cpu", "cuda"
BF16_FROM = 8  # major compute capability
_CAPTURING = threading.Lock()  # PyTorch has one capture at a time in a process

logger = logging.getLogger(__name__)


class Mark(Protocol):
    """A place in the work of a device (`torch.cuda.Event`)."""

    def record(self) -> None:
        """Set the place: behind everything that was enqueued."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has come to it."""
        ...


class _Reached:
    """A `Mark` where work is done when its call returns."""

    def record(self) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Do nothing."""


class Device:
    """The CPU: work is done when its call returns, and what was captured is replayed by calling it."""

    title = "the CPU"
    own_memory = False  # whether its memory is apart from the machine's

    def __init__(self, place: torch.device | None = None) -> None:
        self.place = place or torch.device(CPU)

    @contextmanager
    def running(self, what: str) -> Iterator[None]:
        """Compute on this device in this context, without gradients. An error of the device, too little memory among
        them, becomes a `DataError` that names ``what``."""
        with torch.no_grad():
            yield

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of zeros on this device."""
        return torch.zeros(shape, dtype=dtype, device=self.place)

    def host_tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of any content in host memory that this device copies from and to by itself."""
        return torch.empty(shape, dtype=dtype)

    def mark(self) -> Mark:
        """A new mark."""
        return _Reached()

    def capture(self, run: Callable[[], None]) -> Callable[[], None] | None:
        """Capture the work of ``run`` without doing it. Returns a call that does it; None where it cannot be captured.
        The tensors that ``run`` reads and writes must stay where they are."""
        return run

    def available_bytes(self) -> int | None:
        """Free memory of the device; None where it is the machine's own."""
        return None

    def free_cached(self) -> None:
        """Give memory that PyTorch keeps for later back to the device."""

    def precise(self) -> Any:
        """A context in which float32 is not rounded in convolutions."""
        return nullcontext()

    def seconds(self, enqueue: Callable[[], None]) -> float:
        """Seconds that the work of ``enqueue`` takes, by the device's clock."""
        start = time.perf_counter()
        enqueue()
        return time.perf_counter() - start


class CudaDevice(Device):
    """An NVIDIA GPU: work is enqueued on PyTorch's current stream, and steps are captured as CUDA graphs."""

    def __init__(self, place: torch.device, cuda_graphs: bool = True) -> None:
        """``place`` is one that `open_device` has checked. Nothing is captured without ``cuda_graphs``."""
        super().__init__(place)
        properties = torch.cuda.get_device_properties(place)
        self.title = str(properties.name)
        self.own_memory = not getattr(properties, "is_integrated", False)
        self._captures = cuda_graphs
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None  # memory of captured steps: they run one after the other, so all share it

    @contextmanager
    def running(self, what: str) -> Iterator[None]:
        """See `Device.running`. An error may be that of earlier work."""
        try:
            with torch.cuda.device(self.place), torch.no_grad():
                yield
        except torch.OutOfMemoryError as error:
            raise DataError(
                f"the GPU has too little memory for {what}: {self._memory()}; use fewer rows or shots, or a smaller "
                "model"
            ) from error
        except RuntimeError as error:
            if "CUDA" not in str(error) and "cuDNN" not in str(error):
                raise
            raise DataError(
                f"the GPU failed while {what}: {_line(error)}; start the program again, and if it happens again look "
                "at nvidia-smi, or leave --device out"
            ) from error

    def host_tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See `Device.host_tensor`: page-locked memory."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def mark(self) -> Mark:
        """See `Device.mark`."""
        return torch.cuda.Event()

    def capture(self, run: Callable[[], None]) -> Callable[[], None] | None:
        """See `Device.capture`. The first time that it cannot be done, a warning says why; later calls give None."""
        if not self._captures:
            return None
        graph = torch.cuda.CUDAGraph()
        try:
            with _CAPTURING:
                if self._stream is None:
                    self._stream, self._pool = torch.cuda.Stream(self.place), torch.cuda.graph_pool_handle()
                # Other threads may allocate memory meanwhile.
                with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    run()
        except RuntimeError as error:
            self._captures = False
            logger.warning("decode steps are not captured as CUDA graphs, and take longer to start: %s", _line(error))
            return None
        return graph.replay

    def available_bytes(self) -> int | None:
        """See `Device.available_bytes`; counts what PyTorch has allocated and does not use."""
        if not self.own_memory:
            return None
        free, _ = torch.cuda.mem_get_info(self.place)
        unused = torch.cuda.memory_reserved(self.place) - torch.cuda.memory_allocated(self.place)
        return int(free + unused)

    def free_cached(self) -> None:
        """See `Device.free_cached`."""
        torch.cuda.empty_cache()

    def precise(self) -> Any:
        """See `Device.precise`: by default cuDNN rounds float32 to TF32."""
        return torch.backends.cudnn.flags(
            enabled=torch.backends.cudnn.enabled, benchmark=torch.backends.cudnn.benchmark,
            deterministic=torch.backends.cudnn.deterministic, allow_tf32=False,
        )

    def seconds(self, enqueue: Callable[[], None]) -> float:
        """See `Device.seconds`."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        enqueue()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3  # milliseconds

    def _memory(self) -> str:
        free, total = torch.cuda.mem_get_info(self.place)
        return f"{free / 1e6:,.1f} MB of {total / 1e6:,.1f} MB are free"


def open_device(name: str, cuda_graphs: bool = True) -> Device:
    """The device called ``cpu``, ``cuda``, which is the first GPU, or ``cuda:N``.

    Raises `UsageError` for a name that is unknown or a GPU that is not there, `DependencyError` where the installed
    PyTorch has no CUDA, there is no GPU, CUDA does not start, or PyTorch has no kernels for the GPU.
    """
    kind, colon, number = name.partition(":")
    if name == CPU:
        return Device()
    if kind != CUDA or (colon and not (number.isascii() and number.isdigit() and len(number) < 4)):
        raise UsageError(f"unknown device {name!r}; known: cpu, cuda, and cuda:N for one of several GPUs")
    _require_cuda(name)
    index, count = int(number or 0), torch.cuda.device_count()
    if index >= count:
        known = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise UsageError(f"there is no device {name}: CUDA finds {count} GPU{'s' if count > 1 else ''}, {known}")
    _require_kernels(index)
    return CudaDevice(torch.device(CUDA, index), cuda_graphs)


def usual_dtype(device: Device) -> torch.dtype:
    """The type that the torch backend computes in on a device unless another is asked for: bfloat16 on GPUs that have
    it, else float32."""
    has_it = device.place.type == CUDA and torch.cuda.get_device_capability(device.place)[0] >= BF16_FROM
    return torch.bfloat16 if has_it else torch.float32


def _require_cuda(name: str) -> None:
    """Raise `DependencyError` that says what is missing for CUDA."""
    version = torch.__version__
    if torch.version.cuda is None:
        raise DependencyError(
            f"device {name}: the installed PyTorch {version} has no CUDA: install a CUDA build of PyTorch, or leave "
            "--device out"
        )
    if torch.cuda.is_available():
        return
    gpu = find_gpu()
    if gpu is None:
        raise DependencyError(f"device {name}: no NVIDIA GPU is found: it needs one and its driver")
    raise DependencyError(
        f"device {name}: CUDA {torch.version.cuda} of PyTorch {version} does not start on {gpu.name} "
        f"({_start_failure()}): update the driver, or install a PyTorch for the CUDA that it has; look at nvidia-smi "
        "and CUDA_VISIBLE_DEVICES too"
    )


def _start_failure() -> str:
    """The reason that CUDA gives when it is started."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return _line(error)
    return "it finds no device"


def _require_kernels(index: int) -> None:
    """Raise `DependencyError` where none of the kernels in the installed PyTorch run on a GPU."""
    built, properties = torch.cuda.get_arch_list(), torch.cuda.get_device_properties(index)
    major, minor = torch.cuda.get_device_capability(index)
    integrated = bool(getattr(properties, "is_integrated", False))
    if not built or any(runs_on(target, major, minor, integrated) for target in built):
        return
    raise DependencyError(
        f"{properties.name} has compute capability {major}.{minor}, and PyTorch {torch.__version__} was built for "
        f"{', '.join(built)}, none of which runs on it: install a PyTorch that was built for sm_{major}{minor}; "
        "--backend tensorrt runs on it, with engines that flamingo-rt build compiles for it, or leave --device out"
    )


def runs_on(target: str, major: int, minor: int, integrated: bool) -> bool:
    """Whether code for ``target`` (``sm_86``, ``sm_90a``, ``compute_120``) runs on a GPU of a compute capability.

    Machine code (``sm``) runs on the same major version from its own minor one on; on an ``integrated`` GPU (Jetson)
    on its own version alone, as with the suffix ``a``. Intermediate code (``compute``) is compiled for later ones.
    """
    kind, _, version = target.partition("_")
    digits = version.rstrip("af")
    if kind not in ("sm", "compute") or not digits.isdigit() or len(digits) < 2:
        return False
    built = int(digits[:-1]), int(digits[-1])
    if version.endswith("a") or (kind == "sm" and integrated):
        return built == (major, minor)
    if kind == "sm" or version.endswith("f"):
        return built[0] == major and built[1] <= minor
    return built <= (major, minor)


def tensor_of(array: np.ndarray) -> Tensor:
    """An array of `TensorSpec.array_dtype` as a tensor in the same memory; uint16 holds the bits of bfloat16."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def _line(error: BaseException) -> str:
    """The first words of an error, on one line."""
    return " ".join(str(error).split())[:300]
