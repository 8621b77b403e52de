"""ONNX Runtime's execution providers for NVIDIA GPUs: which can be had here, and sessions that run on one alone.

ONNX Runtime falls back to the CPU in three ways, and none of them is silent here. A provider that does not start is
left out of the session (`get_providers` tells). A session that cannot be made is made again without it (turned off).
A node without a kernel runs on the CPU, its tensors copied there and back in each run: where every node went is asked
for, and only those that compute shapes and positions may be on the CPU, where ONNX Runtime puts them by itself to avoid
copies. `session.disable_cpu_ep_fallback` would refuse those too, so it is not used.

Sources: onnxruntime-gpu 1.31.1 and onnxruntime-ep-nv-tensorrt-rtx-cu13 0.5.0.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import sys
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path
from typing import Any

from flamingo_rt.contract import CACHE_FORMS, IN_PLACE
from flamingo_rt.engines.gpu.nvidia_driver import required_gpu
from flamingo_rt.engines.ort import FATAL, import_onnxruntime, set_weights_folder
from flamingo_rt.errors import DataError, DependencyError
from flamingo_rt.graph_files import read_graph

CUDA_BACKEND, RTX_BACKEND = "ort-cuda", "ort-tensorrt-rtx"
RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"

# What may run on the CPU: what shapes, positions, masks and indices are computed with. ONNX Runtime moves such a node
# there only when all it reads is there already; CUDA has kernels for each of them, if not for every type. That none
# computes a whole activation there is not checked: it is told by the operator alone.
HOST_OPERATORS = frozenset((
    "Abs", "Add", "And", "Cast", "Clip", "Concat", "ConstantOfShape", "Cos", "Div", "Equal", "Expand", "Gather",
    "GatherElements", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg",
    "Not", "Or", "Pow", "Range", "Reciprocal", "ReduceMax", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Shape", "Sin",
    "Size", "Slice", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where",
))


class Provider(ABC):
    """One execution provider, ready to be used. ``lowerings`` are those whose graphs it runs; ``fixed_capacity`` says
    that it takes a cache of one size alone, ``reads_files`` that it may look for weights by itself, beside the graph's
    file, which it is given wherever that is possible."""

    backend: str
    name: str
    title: str
    lowerings = tuple(name for name, form in CACHE_FORMS.items() if form == IN_PLACE)
    fixed_capacity = reads_files = False

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime

    def open(self, path: Path, stream: int, capacity: int | None = None) -> Any:
        """A session of a graph that computes on ``stream``, the handle of a CUDA stream, with the cache's ``capacity``
        where that is fixed.

        Raises `DependencyError` when the provider does not start, `DataError` when it cannot run the graph alone.
        """
        runtime = self.runtime
        options = runtime.SessionOptions()
        options.log_severity_level = FATAL
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if capacity is not None:
            options.add_free_dimension_override_by_name("C", capacity)
        graph = read_graph(path)
        set_weights_folder(options, graph)
        source = str(path) if self.reads_files and not graph.linked and isinstance(graph.beside, str) else graph.model
        providers = self._add_to(options, stream)
        try:
            session = runtime.InferenceSession(source, options, providers=providers, enable_fallback=0)
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise DataError(
                f"ONNX Runtime {runtime.__version__} cannot load {path} with {self.title}: {error}; run it with "
                "--backend ort"
            ) from error
        if self.name not in session.get_providers():
            raise DependencyError(
                f"{self.title} does not start in ONNX Runtime {runtime.__version__}, which would run the graph on "
                f"{', '.join(session.get_providers())}: check the driver and the CUDA libraries"
            )
        self._check_placement(path, session)
        return session

    @abstractmethod
    def _add_to(self, options: Any, stream: int) -> list[Any] | None:
        """Ask for the provider: in a session's options, or as what `InferenceSession` takes as ``providers``."""

    def _check_placement(self, path: Path, session: Any) -> None:
        elsewhere = Counter(
            node.op_type for part in session.get_provider_graph_assignment_info() if part.ep_name != self.name
            for node in part.get_nodes() if node.domain not in ("", "ai.onnx") or node.op_type not in HOST_OPERATORS
        )
        if elsewhere:
            listed = ", ".join(f"{count} {name}" for name, count in sorted(elsewhere.items()))
            raise DataError(
                f"{path} does not run on the GPU alone: {self.title} in ONNX Runtime {self.runtime.__version__} leaves "
                f"to the CPU: {listed}; export with --compute fp16 or bf16, or with --lowering tensorrt, or run it "
                "with --backend ort"
            )


class CudaProvider(Provider):
    """ONNX Runtime's own CUDA kernels, of the distribution onnxruntime-gpu. Its GroupQueryAttention takes a bias, of
    ALiBi or relative positions, from 1.29 on, and no float32."""

    backend, name, title = CUDA_BACKEND, "CUDAExecutionProvider", "CUDA"

    def __init__(self) -> None:
        """Raises `DependencyError` where there is no GPU, no such distribution, or its libraries are missing."""
        required_gpu(self.backend)
        super().__init__(_import("gpu"))
        if self.name not in self.runtime.get_available_providers():
            raise DependencyError(
                f"the onnxruntime {self.runtime.__version__} that is installed has no CUDA: pip uninstall onnxruntime "
                "onnxruntime-gpu, then pip install 'flamingo-rt[gpu]'"
            )
        _load_libraries(self.runtime)

    def _add_to(self, options: Any, stream: int) -> list[Any]:
        return [(self.name, {
            "device_id": "0",
            "user_compute_stream": str(stream),
            # Of what a run asks for, not the next power of two: the cache needs the memory too.
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",  # the default tries all for each number of pictures
            "use_tf32": "0",  # float32 is what the graph says; who wants less takes fp16 or bf16
        })]


class RtxProvider(Provider):
    """TensorRT-RTX as a plugin of plain onnxruntime, 1.24 or newer. It compiles the graphs when they are loaded. Those
    of the ``tensorrt`` lowering alone: they are the ones whose operators its parser is known to build here, and it
    updates the cache in place where its size is fixed."""

    backend, name, title = RTX_BACKEND, "NvTensorRTRTXExecutionProvider", "TensorRT-RTX"
    lowerings = ("tensorrt",)
    fixed_capacity = reads_files = True

    def __init__(self) -> None:
        """Raises `DependencyError` where there is no GPU, no plugin, or it does not load."""
        required_gpu(self.backend)
        super().__init__(_import("gpu-rtx"))
        try:
            plugin = importlib.import_module(RTX_PLUGIN)
        except ImportError as error:
            raise DependencyError(
                f"{RTX_PLUGIN} cannot be imported ({error}): pip install 'flamingo-rt[gpu-rtx]'"
            ) from error
        if not self._devices():
            try:
                self.runtime.register_execution_provider_library(self.name, plugin.get_library_path())
            except Exception as error:
                raise DependencyError(f"the plugin {RTX_PLUGIN} does not load: {error}") from error
        if not self._devices():
            raise DependencyError(f"the plugin {RTX_PLUGIN} runs on none of the GPUs here: it needs Ampere or newer")

    def _devices(self) -> list[Any]:
        return [device for device in self.runtime.get_ep_devices() if device.ep_name == self.name][:1]

    def _add_to(self, options: Any, stream: int) -> None:
        own = {"has_user_compute_stream": "1", "user_compute_stream": str(stream)}
        options.add_provider_for_devices(self._devices(), own)


PROVIDERS: dict[str, type[CudaProvider] | type[RtxProvider]] = {
    kind.backend: kind for kind in (CudaProvider, RtxProvider)
}


def has_cuda_kernels() -> bool:
    """Whether the installed onnxruntime, if any, is one with CUDA, whether or not that starts here."""
    try:
        return CudaProvider.name in import_onnxruntime().get_available_providers()
    except DependencyError:
        return False


def _import(extra: str) -> Any:
    runtime = import_onnxruntime(extra)
    if not hasattr(runtime.InferenceSession, "get_provider_graph_assignment_info"):  # since 1.24.1
        # For Python 3.10 there is none that can: 1.23 was the last.
        newer = "" if sys.version_info >= (3, 11) else "with Python 3.11 or newer, "
        raise DependencyError(
            f"onnxruntime {runtime.__version__} cannot say what it runs on the GPU: {newer}pip install "
            f"'flamingo-rt[{extra}]'"
        )
    return runtime


def _load_libraries(runtime: Any) -> None:
    """Load CUDA's libraries, from their own wheels where those are installed. Raises `DependencyError` that names what
    is missing: ONNX Runtime itself would log it and go on without the GPU."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):  # it reports to stdout, which is the answer's
        getattr(runtime, "preload_dlls", lambda: None)()
    folder = Path(getattr(runtime, "__file__", "")).parent / "capi"
    for name in ("libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"):
        if (folder / name).is_file():
            try:
                ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
            except OSError as error:
                raise DependencyError(
                    f"ONNX Runtime's CUDA kernels do not load ({error}): pip install 'flamingo-rt[gpu]', or install "
                    "the CUDA and cuDNN that this version of onnxruntime-gpu was built for"
                ) from error
