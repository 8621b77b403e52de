"""ONNX Runtime on the CPU.

Graphs of the lowering ``tensorrt-classic``, which return the new keys and values alone, run here too: their cache is
copied at each call (`bind_appended_cache`). That serves checks, and bundles whose own runtime is not installed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_rt.backend import HostBackend
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import CACHE_LENGTH, IN_PLACE, INPUT_IDS, LANGUAGE_MODEL, GraphSpec, graph_specs
from flamingo_rt.cores import check_threads
from flamingo_rt.errors import DataError, DependencyError, UsageError
from flamingo_rt.graph_files import GraphFile, native, read_graph

NAME = "ort"
FATAL = 4  # the level of its log that is written
ORT_TYPES = {"float32": "float"}  # where its names differ


def import_onnxruntime(extra: str = "cpu") -> Any:
    """Import the module; raises a `DependencyError` that names the ``extra``.

    ONNX Runtime's default logger writes to stderr beside the errors that are raised, and quotes names of the graph as
    they are. Where this is the first import of the process, it is turned down to fatal errors; whoever imports
    onnxruntime before decides for the process.
    """
    first = "onnxruntime" not in sys.modules
    try:
        import onnxruntime
    except ImportError as error:
        raise DependencyError(
            f"onnxruntime cannot be imported ({error}): pip install 'flamingo-rt[{extra}]'"
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):  # two distributions share files, and one was uninstalled
        raise DependencyError(
            f"onnxruntime is installed in parts: pip uninstall onnxruntime onnxruntime-gpu, then pip install "
            f"'flamingo-rt[{extra}]'"
        )
    if first:
        onnxruntime.set_default_logger_severity(FATAL)
    return onnxruntime


class OrtBackend(HostBackend):
    """The three graphs as ONNX Runtime sessions; buffers are numpy arrays in host memory. ``specs`` are the graphs'
    names, types and shapes."""

    name = NAME
    continues_batches = False  # GroupQueryAttention continues a filled cache with several tokens for one row alone

    def __init__(
        self, graphs: Mapping[str, Path | GraphFile], config: FlamingoConfig, threads: int | None = None,
        frugal: bool = False, spin: bool = True, dtype: str = "float32", cache: str = IN_PLACE,
    ) -> None:
        """Load the graphs, given as paths or as files that were read. They compute in ``dtype`` and have their cache in
        the form ``cache``; one that is not in place is copied at each call. ``threads`` is the number of cores for one
        operator; by default ONNX Runtime decides.

        ``frugal`` computes from the mapped files, without a second copy of the weights in the layout that is fastest,
        or in float32 where they are stored in half precision: slower, with the files' size as memory. Threads that wait
        for the next operator ``spin``, a fraction of a millisecond at most: a token has hundreds of operators, and a
        thread would be woken for each. Without that the cores are left to other work; its cost was measured on
        2026-11-23 (`benchmarks/results`, the file of choices).

        Raises `DependencyError` without onnxruntime, `DataError` when a graph cannot be loaded, `UsageError` for more
        threads than cores and for graphs in bfloat16: the CPU kernels have none.
        """
        if dtype == "bfloat16":
            raise UsageError(
                "ONNX Runtime has no CPU kernels for graphs that compute in bf16: export with --compute fp32 for CPUs "
                "(with --dtype bf16, the same weights)"
            )
        check_threads(threads)
        self._runtime = runtime = import_onnxruntime()
        super().__init__(graph_specs(config, dtype))
        self._forms = graph_specs(config, dtype, cache)
        self._sessions = {}
        # The largest first: while one is loaded, part of its file is in memory too.
        for name, given in sorted(graphs.items(), key=lambda entry: entry[0] != LANGUAGE_MODEL):
            file = given if isinstance(given, GraphFile) else read_graph(given)
            path, options = file.path, _session_options(runtime, threads, frugal, spin)
            set_weights_folder(options, file)
            try:
                session = runtime.InferenceSession(file.model, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime's exceptions share no base of their own
                raise DataError(f"ONNX Runtime {runtime.__version__} cannot load {path}: {error}") from error
            check_interface(path, session, self._forms[name])
            self._sessions[name] = session

    def bind(
        self, graph: str, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray],
        constant: Collection[str] = (),
    ) -> Callable[[], None]:
        """A call that reads ``inputs`` and writes ``outputs`` in place, each time it is made.

        The arrays must be C-contiguous and stay the caller's; an input and an output may share memory (the cache).
        """
        if self._forms[graph] == self.specs[graph]:
            return self._bind(graph, inputs, outputs)
        return bind_appended_cache(lambda *bound: self._bind(graph, *bound), self._forms[graph], inputs, outputs)

    def _bind(
        self, graph: str, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> Callable[[], None]:
        session, spec = self._sessions[graph], self._forms[graph]
        binding = session.io_binding()
        wanted = [tensor for tensor in spec.outputs if tensor.name in outputs]
        for tensors, specs, bind in ((inputs, spec.inputs, binding.bind_input), (outputs, wanted, binding.bind_output)):
            for tensor in specs:
                array = tensors[tensor.name]
                if array.dtype != tensor.array_dtype or not array.flags.c_contiguous:
                    raise ValueError(f"{graph}: {tensor.name} must be a C-contiguous {tensor.array_dtype} array")
                bind(tensor.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        kept = (dict(inputs), dict(outputs))  # the binding holds addresses, not references

        def call() -> None:
            try:
                session.run_with_iobinding(binding)
            except Exception as error:  # onnxruntime's exceptions share no base of their own
                raise run_failure(self._runtime, graph, error) from error

        call.buffers = kept  # type: ignore[attr-defined]
        return call


def _session_options(runtime: Any, threads: int | None, frugal: bool, spin: bool) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = FATAL  # its errors quote names in the graph as they are; ours say the same, printable
    # A pattern plans the memory of the next run of the same sizes as one block, beside what the first run took. For a
    # model of 1.08 GB, 4 shots and 256 tokens (2026-11-28, one core), a second answer took 105 MB more, beside the 155
    # MB of activations of the first, and as long as without patterns: vision 1.6 s, prefill 0.74 s, 16 tokens 0.30 s.
    options.enable_mem_pattern = False
    if threads is not None:
        options.intra_op_num_threads = threads
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if frugal:
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_cpu_mem_arena = False
        # Every level above folds the casts of weights; the default order computes all of them before the rest.
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.execution_order = runtime.ExecutionOrder.PRIORITY_BASED
    return options


def set_weights_folder(options: Any, file: GraphFile) -> None:
    """Let a session of ``file.model`` take its weights from the folder they are in, and read these bytes as ONNX alone:
    ONNX Runtime has a format of its own too, which nothing here has looked through."""
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", native(file.folder))


_SOURCE = re.compile(r"/onnxruntime_src/\S+ ")  # where in its own source an error was raised


def run_failure(
    runtime: Any, graph: str, error: Exception, where: str = "on the CPU", memory: str = "the machine",
    remedy: str = "the graph is damaged or not of this configuration; copy the bundle again, or "
    "export the model again",
) -> DataError:
    """Turn an error inside a run into one that names the graph and a remedy."""
    said = _SOURCE.sub("", " ".join(str(error).split()))
    if "allocate" in said or "bad_alloc" in said:
        remedy = f"{memory} has too little memory: use fewer rows or shots, or a smaller model"
    return DataError(f"ONNX Runtime {runtime.__version__} cannot run the {graph} {where}: {said}; {remedy}")


def check_interface(path: Path, session: Any, spec: GraphSpec) -> None:
    """Raise `DataError` unless the graph of a session has the inputs and outputs of ``spec``."""
    for found, expected in ((session.get_inputs(), spec.inputs), (session.get_outputs(), spec.outputs)):
        values = {value.name: (tuple(value.shape), value.type) for value in found}
        for name in values.keys() - {tensor.name for tensor in expected}:
            raise DataError(f"{path} does not fit the configuration: it has {name} too; export the model again")
        for tensor in expected:
            wanted = (tensor.shape, f"tensor({ORT_TYPES.get(tensor.dtype, tensor.dtype)})")
            if values.get(tensor.name) != wanted:
                raise DataError(
                    f"{path} does not fit the configuration: {tensor.name} is {values.get(tensor.name, 'missing')}, "
                    f"{wanted} was expected; export the model again"
                )


Arrays = Mapping[str, np.ndarray]
Bind = Callable[[Arrays, Arrays], Callable[[], None]]


def bind_appended_cache(bind: Bind, spec: GraphSpec, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
    """A call that reads ``inputs`` and writes ``outputs``, which have the cache in place [B, Hk, C, d]. Each time it
    calls ``bind`` with copies of the cache in the form of ``spec``: past [C, B, Hk, d], present [T, B, Hk, d]."""
    past = [tensor.name for tensor in spec.inputs if tensor.shape[0] == "C"]
    present = [tensor for tensor in spec.outputs if tensor.shape[0] == "T"]

    def call() -> None:
        lengths = inputs[CACHE_LENGTH]
        cached = max(1, int(lengths.max()))
        copied = {name: np.ascontiguousarray(inputs[name][:, :, :cached].transpose(2, 0, 1, 3)) for name in past}
        sizes = {"B": len(lengths), "T": inputs[INPUT_IDS].shape[1]}
        new = {tensor.name: np.empty(tensor.resolve(sizes), tensor.array_dtype) for tensor in present}
        bind({**inputs, **copied}, {**outputs, **new})()
        for name, tokens in new.items():
            for row, start in enumerate(lengths):
                outputs[name][row, :, start : start + len(tokens)] = tokens[:, row].swapaxes(0, 1)

    return call
