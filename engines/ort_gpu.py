"""Bundles on ONNX Runtime with an NVIDIA GPU: the graphs as they are, their buffers and the cache in device memory.

- Inputs, outputs and the cache are bound by device pointers; past and present are the same memory, which
  GroupQueryAttention and TensorScatter write in place. All work goes on one stream of ours, and only we wait for it:
  ONNX Runtime's own wait behind each run is turned off.
- ONNX Runtime computes shapes on the CPU, and reports for each input where it reads it. Inputs that it reads there are
  bound in host memory, which is pinned for steps: bound on the device, they would be copied once, when they are bound,
  and never again. In graphs of the lowering ``ort`` those are the rows' lengths: GroupQueryAttention wants the longest
  on the host. Steps of such graphs do not run ahead: nothing guarantees that the next one does not overwrite values on
  the host that the previous one still reads.
- Steps of one token are captured as CUDA graphs by ONNX Runtime where nothing is read in host memory
  (`ort_captures.py`).

ONNX Runtime falls back to the CPU in three ways, and none of them is silent here. It leaves a provider that does not
start out of the session: `get_providers` tells. It makes a session that cannot be made again without the provider: that
is turned off. It runs a node without a kernel on the CPU, and copies its tensors there and back in each run: we ask
where every node went, and allow only those that compute shapes and positions on the CPU, where ONNX Runtime puts them
by itself to avoid copies. `session.disable_cpu_ep_fallback` would refuse those too, so it is not used.

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

import numpy as np

from flamingo_rt.bundle import Bundle
from flamingo_rt.contract import CACHE_FORMS, IN_PLACE, INPUT_IDS, LANGUAGE_MODEL, GraphSpec, TensorSpec, graph_specs
from flamingo_rt.engines.gpu.bound_arrays import BoundArrays, BoundGraph, GraphInterface
from flamingo_rt.engines.gpu.cache_pool import CachePool, PooledCache
from flamingo_rt.engines.gpu.cuda import Cuda
from flamingo_rt.engines.gpu.device_cache import CacheLayout
from flamingo_rt.engines.gpu.gpu_backend import GpuBackend
from flamingo_rt.engines.gpu.nvidia_driver import Gpu, required_gpu
from flamingo_rt.engines.ort import FATAL, check_interface, import_onnxruntime, run_failure, set_weights_folder
from flamingo_rt.engines.ort_captures import (
    ENABLE,
    GRAPH_ID,
    SKIPPED,
    CapturedSteps,
    can_capture,
    captured_steps,
    refuses_captures,
    warn_of_plain_steps,
)
from flamingo_rt.engines.tensorrt.versions import version_numbers
from flamingo_rt.errors import DataError, DependencyError, UsageError
from flamingo_rt.graph_files import read_graph

BFLOAT16 = 16  # TensorProto.DataType: numpy has no such type
HOST_MEMORY = "Cpu"  # as ONNX Runtime names it
TURING, TURINGS_CUDA = (7, 5), (13,)  # CUDA 13 ended Maxwell, Pascal and Volta


class OrtGpuBackend(GpuBackend):
    """The three graphs of a bundle as ONNX Runtime sessions on one GPU."""

    def __init__(self, bundle: Bundle, provider: Provider, cuda_graphs: bool = True) -> None:
        """Load the graphs, to be run by ``provider``. Without ``cuda_graphs`` no step is captured.

        Raises `DependencyError` without a GPU or a library to call its driver through, `UsageError` for a lowering that
        the provider does not run, `DataError` when a graph cannot be loaded or does not run on the GPU alone.
        """
        lowering = bundle.graphs[LANGUAGE_MODEL].lowering
        if lowering not in provider.lowerings:
            raise UsageError(
                f"{bundle.path} was exported with --lowering {lowering}, which the {provider.backend} backend does not "
                f"run: export with --lowering {' or '.join(provider.lowerings)}"
            )
        cuda, specs = Cuda(), graph_specs(bundle.config, bundle.compute)
        capacity = bundle.config.language.context if provider.fixed_capacity else None
        wanted = cuda_graphs and provider.captures and can_capture(lowering)
        self._sessions, interfaces = {}, {}
        self._captured: CapturedSteps | None = None
        with cuda.current():
            # The language model first: it is the likeliest to be refused.
            for name in sorted(specs, key=lambda name: name != LANGUAGE_MODEL):
                path, fixed = bundle.graph_path(name), capacity if name == LANGUAGE_MODEL else None
                capturing = wanted and name == LANGUAGE_MODEL
                session, captures = provider.open_capturing(path, cuda.stream, fixed, capturing)
                if fixed is None:  # otherwise its shapes have the capacity where the contract has a letter
                    check_interface(path, session, specs[name])
                self._sessions[name] = session
                interfaces[name] = _interface(session, specs[name])
                if captures:
                    self._captured = captured_steps(interfaces[name].on_host)
        layout = CacheLayout(specs[LANGUAGE_MODEL], "use fewer shots or a smaller max_new_tokens")
        super().__init__(cuda, specs, interfaces, CachePool(cuda, layout))
        self.name, self._provider, self._capacity = provider.backend, provider, capacity
        # GroupQueryAttention continues a filled cache with several tokens for one row alone.
        self.continues_batches = lowering != "ort"

    def cache(self, rows: int, capacity: int) -> PooledCache:
        """See `GpuBackend.cache`. Where the provider takes one capacity alone, that is allocated whatever is asked for.
        """
        return self._pool.open(rows, self._capacity or capacity)

    def _bind_graph(self, arrays: BoundArrays) -> BoundGraph:
        name = arrays.interface.spec.name
        return BoundSession(
            self._sessions[name], self._provider, arrays, self._captured if name == LANGUAGE_MODEL else None
        )


class BoundSession:
    """A `BoundGraph`: a session whose tensors are bound to addresses once."""

    def __init__(
        self, session: Any, provider: Provider, arrays: BoundArrays, captured: CapturedSteps | None = None
    ) -> None:
        """``captured`` has the annotation ids of a session that captures steps."""
        self._session, self._provider, self._arrays, self._captured = session, provider, arrays, captured
        self._binding = session.io_binding()
        spec, addresses = arrays.interface.spec, {**arrays.addresses, **arrays.cache_addresses}
        shapes = {**arrays.output_shapes, **{name: buffer.shape for name, buffer in arrays.present.items()}}
        for tensor in spec.inputs:
            device, name = "cpu" if tensor.name in arrays.interface.on_host else "cuda", tensor.name
            self._binding.bind_input(name, device, 0, _element_type(tensor), arrays.shapes[name], addresses[name])
        for tensor in spec.outputs:
            name = tensor.name
            self._binding.bind_output(name, "cuda", 0, _element_type(tensor), shapes[name], addresses[name])
        self._options: dict[str, Any] = {}
        # A step of one token may be captured: its shapes and addresses say which one it is.
        captures = captured is not None and arrays.repeated and arrays.shapes[INPUT_IDS][1] == 1
        self._bound = (*arrays.shapes.items(), *shapes.items(), *addresses.items()) if captures else None

    def enqueue(self) -> None:
        """See `BoundGraph.enqueue`. A step that cannot be captured is run as it is, with a warning."""
        self._arrays.upload()
        captured = self._captured
        graph_id = captured.id_of(self._bound) if captured is not None and self._bound is not None else SKIPPED
        try:
            try:
                self._run(graph_id)
            except Exception as error:
                if captured is None or not captured.gives_up(graph_id, error):
                    raise
                self._run(SKIPPED)
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise run_failure(
                self._provider.runtime, self._arrays.interface.spec.name, error, f"with {self._provider.title}",
                "the GPU", "run it with --backend ort",
            ) from error
        self._arrays.download()

    def _run(self, graph_id: str) -> None:
        if graph_id not in self._options:
            options = self._options[graph_id] = self._provider.runtime.RunOptions()
            # We wait for the stream ourselves; a run returns when all of it is on the stream.
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
            if self._captured is not None:
                options.add_run_config_entry(GRAPH_ID, graph_id)
        self._session.run_with_iobinding(self._binding, self._options[graph_id])
        if self._captured is not None:
            self._captured.succeeded(graph_id)


def _interface(session: Any, spec: GraphSpec) -> GraphInterface:
    """The interface of a session: which inputs it reads in host memory is asked of it."""
    dtypes = {tensor.name: np.dtype(tensor.array_dtype) for tensor in (*spec.inputs, *spec.outputs)}
    memory = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
    return GraphInterface(spec, dtypes, frozenset(value.name for value, info in memory if info.name == HOST_MEMORY))


def _element_type(spec: TensorSpec) -> Any:
    """The element type for ONNX Runtime: numpy's type, or ONNX's number where numpy has none."""
    return BFLOAT16 if spec.dtype == "bfloat16" else np.dtype(spec.dtype).type


CUDA_BACKEND, RTX_BACKEND = "ort-cuda", "ort-tensorrt-rtx"
RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"

# Operators that may run on the CPU: those that shapes, positions, masks and indices are computed with. ONNX Runtime
# moves such a node there only when all it reads is there already; CUDA has kernels for each of them, if not for every
# type. A node is known by its operator alone: that none of them computes a whole activation there is not checked.
HOST_OPERATORS = frozenset((
    "Abs", "Add", "And", "Cast", "Clip", "Concat", "ConstantOfShape", "Cos", "Div", "Equal", "Expand", "Gather",
    "GatherElements", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg",
    "Not", "Or", "Pow", "Range", "Reciprocal", "ReduceMax", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Shape", "Sin",
    "Size", "Slice", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where",
))


class Provider(ABC):
    """One execution provider, ready to be used. ``lowerings`` are those whose graphs it runs; ``fixed_capacity`` says
    that it takes a cache of one capacity alone, ``reads_files`` that it may read weights by itself, beside the graph's
    file: so it is given the file's path wherever that is possible, and the graph's bytes elsewhere; ``captures`` that
    it captures steps as CUDA graphs where it is asked to."""

    backend: str
    name: str
    title: str
    lowerings = tuple(name for name, form in CACHE_FORMS.items() if form == IN_PLACE)
    fixed_capacity = reads_files = captures = False

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime

    def open(self, path: Path, stream: int, capacity: int | None = None) -> Any:
        """Make a session of the graph ``path`` that computes on ``stream``, the handle of a CUDA stream, with the
        cache's ``capacity`` where that is fixed.

        Raises `DependencyError` when the provider does not start, `DataError` when the graph cannot be loaded or does
        not run on the GPU alone.
        """
        return self.open_capturing(path, stream, capacity, wanted=False)[0]

    def open_capturing(
        self, path: Path, stream: int, capacity: int | None = None, wanted: bool = True
    ) -> tuple[Any, bool]:
        """`open` a session that captures steps, if that is ``wanted``. Returns it and whether it does: where ONNX
        Runtime refuses that, a warning says why."""
        runtime = self.runtime
        options = runtime.SessionOptions()
        options.log_severity_level = FATAL
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if capacity is not None:
            options.add_free_dimension_override_by_name("C", capacity)
        file = read_graph(path)
        set_weights_folder(options, file)
        source = str(path) if self.reads_files and not file.linked and isinstance(file.beside, str) else file.model
        providers = self._add_to(options, stream, wanted)
        try:
            session = runtime.InferenceSession(source, options, providers=providers, enable_fallback=0)
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            if wanted and refuses_captures(error):
                warn_of_plain_steps(str(error))
                return self.open(path, stream, capacity), False
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
        return session, wanted

    @abstractmethod
    def _add_to(self, options: Any, stream: int, captures: bool) -> list[Any] | None:
        """Ask for the provider: in a session's options, or by the list that is returned, the ``providers`` of
        `InferenceSession`. ``captures`` says that the session shall capture steps."""

    def _check_placement(self, path: Path, session: Any) -> None:
        """Raise `DataError` for nodes on the CPU that are not of `HOST_OPERATORS`."""
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
    """ONNX Runtime's own CUDA kernels, in the distribution onnxruntime-gpu. Their GroupQueryAttention takes no float32,
    and from 1.29 on a bias, which ALiBi and relative positions need."""

    backend, name, title = CUDA_BACKEND, "CUDAExecutionProvider", "CUDA"
    captures = True

    def __init__(self) -> None:
        """Raises `DependencyError` where there is no GPU or one that is too old, no such distribution, or its libraries
        are missing."""
        gpu = required_gpu(self.backend)
        super().__init__(_import("gpu"))
        if self.name not in self.runtime.get_available_providers():
            raise DependencyError(
                f"the onnxruntime {self.runtime.__version__} that is installed has no CUDA: pip uninstall onnxruntime "
                "onnxruntime-gpu, then pip install 'flamingo-rt[gpu]'"
            )
        _check_generation(self.runtime, gpu)
        _load_libraries(self.runtime)

    def _add_to(self, options: Any, stream: int, captures: bool) -> list[Any]:
        return [(self.name, {
            "device_id": "0",
            "user_compute_stream": str(stream),
            # Extend the arena by what a run asks for, not by the next power of two: the cache needs the memory too.
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",  # the default tries all algorithms for each number of pictures
            "use_tf32": "0",  # the graph says float32; whoever wants less exports with fp16 or bf16
            **({ENABLE: "1"} if captures else {}),
        })]


class RtxProvider(Provider):
    """TensorRT-RTX as a plugin of plain onnxruntime, 1.24 or newer. It compiles the graphs when they are loaded, and
    updates the cache in place where its capacity is fixed. It runs graphs of the ``tensorrt`` lowering alone, whose
    operators its parser is known to build."""

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

    def _add_to(self, options: Any, stream: int, captures: bool) -> None:
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
        # 1.23 was the last for Python 3.10.
        newer = "" if sys.version_info >= (3, 11) else "with Python 3.11 or newer, "
        raise DependencyError(
            f"onnxruntime {runtime.__version__} cannot say what it runs on the GPU: {newer}pip install "
            f"'flamingo-rt[{extra}]'"
        )
    return runtime


def _check_generation(runtime: Any, gpu: Gpu) -> None:
    """Raise `DependencyError` for a GPU that the CUDA of onnxruntime-gpu has no kernels for."""
    cuda = str(getattr(runtime, "cuda_version", ""))
    if version_numbers(cuda) >= TURINGS_CUDA and version_numbers(gpu.capability) < TURING:
        raise DependencyError(
            f"{gpu.name} has compute capability {gpu.capability}: the CUDA {cuda} that onnxruntime-gpu "
            f"{runtime.__version__} was built for begins at {'.'.join(map(str, TURING))}; build engines with a "
            "TensorRT that knows this GPU, or run it with --backend ort"
        )


def _load_libraries(runtime: Any) -> None:
    """Load CUDA's libraries, from their own wheels where those are installed. Raises a `DependencyError` that names
    what is missing: ONNX Runtime itself would log it and go on without the GPU."""
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
