"""Bundles on ONNX Runtime with an NVIDIA GPU: the graphs as they are, their buffers and the cache in device memory.

- Inputs, outputs and the cache are bound by device pointers; past and present are the same memory, which
  GroupQueryAttention and TensorScatter write in place. All work goes on one stream of ours, and a run ends with one
  wait for it: ONNX Runtime's own wait is turned off.
- ONNX Runtime computes shapes on the CPU, and reports for each input where it reads it. Inputs read there are bound in
  pinned memory: bound on the device, they would be copied once, when they are bound, and never again. In graphs of the
  lowering ``ort`` those are the rows' lengths: GroupQueryAttention wants the longest on the host. Such graphs do not
  run ahead: nothing guarantees that the next step does not overwrite host values that the previous one still reads.
- Steps are not captured as CUDA graphs: ONNX Runtime captures none with nodes on the CPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flamingo_rt.bundle import Bundle
from flamingo_rt.contract import LANGUAGE_MODEL, GraphSpec, TensorSpec, graph_specs
from flamingo_rt.engines.execution_providers import Provider
from flamingo_rt.engines.gpu.bound_arrays import BoundArrays, GraphInterface, Launch
from flamingo_rt.engines.gpu.cache_pool import CachePool, PooledCache
from flamingo_rt.engines.gpu.cuda import Cuda
from flamingo_rt.engines.gpu.device_cache import CacheLayout
from flamingo_rt.engines.gpu.gpu_backend import GpuBackend
from flamingo_rt.engines.ort import check_interface, run_failure
from flamingo_rt.errors import UsageError

BFLOAT16 = 16  # TensorProto.DataType: numpy has no such type
HOST_MEMORY = "Cpu"  # ONNX Runtime's name for it


class OrtGpuBackend(GpuBackend):
    """The three graphs of a bundle as ONNX Runtime sessions on one GPU."""

    def __init__(self, bundle: Bundle, provider: Provider) -> None:
        """Load the graphs, to be run by ``provider``.

        Raises `DependencyError` without PyCUDA or a GPU, `UsageError` for a lowering that the provider does not run,
        `DataError` when a graph cannot be loaded, or not be run on the GPU alone.
        """
        lowering = bundle.graphs[LANGUAGE_MODEL].lowering
        if lowering not in provider.lowerings:
            raise UsageError(
                f"{bundle.path} was exported with --lowering {lowering}, which the {provider.backend} backend does not "
                f"run: export with --lowering {' or '.join(provider.lowerings)}"
            )
        cuda, specs = Cuda(), graph_specs(bundle.config, bundle.compute)
        capacity = bundle.config.language.context if provider.fixed_capacity else None
        self._sessions, interfaces = {}, {}
        with cuda.current():
            # The largest first: it is the likeliest to be refused.
            for name in sorted(specs, key=lambda name: name != LANGUAGE_MODEL):
                path, fixed = bundle.graph_path(name), capacity if name == LANGUAGE_MODEL else None
                session = provider.open(path, cuda.stream, fixed)
                if fixed is None:  # otherwise its shapes have the capacity in the place of a letter
                    check_interface(path, session, specs[name])
                self._sessions[name] = session
                interfaces[name] = _interface(session, specs[name])
        layout = CacheLayout(specs[LANGUAGE_MODEL], "use fewer shots or a smaller max_new_tokens")
        super().__init__(cuda, specs, interfaces, CachePool(cuda, layout))
        self.name, self._provider, self._capacity = provider.backend, provider, capacity
        # GroupQueryAttention continues a filled cache with several tokens for one row only.
        self.continues_batches = lowering != "ort"

    def cache(self, rows: int, capacity: int) -> PooledCache:
        """See `GpuBackend.cache`. A provider that takes one capacity only gets that, whatever is asked for."""
        return self._pool.open(rows, self._capacity or capacity)

    def _launch(self, arrays: BoundArrays) -> Launch:
        return OrtLaunch(self._cuda, self._sessions[arrays.graph.spec.name], self._provider, arrays)


class OrtLaunch:
    """A `Launch` of a session, whose tensors are bound to addresses once."""

    def __init__(self, cuda: Cuda, session: Any, provider: Provider, arrays: BoundArrays) -> None:
        self._cuda, self._session, self._provider, self._arrays = cuda, session, provider, arrays
        self._binding = session.io_binding()
        spec, addresses = arrays.graph.spec, {**arrays.addresses, **arrays.cache_addresses}
        shapes = {**arrays.output_shapes, **{name: buffer.shape for name, buffer in arrays.present.items()}}
        for tensor in spec.inputs:
            device, name = "cpu" if tensor.name in arrays.graph.on_host else "cuda", tensor.name
            self._binding.bind_input(name, device, 0, _element_type(tensor), arrays.shapes[name], addresses[name])
        for tensor in spec.outputs:
            name = tensor.name
            self._binding.bind_output(name, "cuda", 0, _element_type(tensor), shapes[name], addresses[name])
        self._options = provider.runtime.RunOptions()
        # We wait for the stream ourselves; a run returns when all of it is on the stream.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def __call__(self) -> None:
        """Put one run on the stream. Raises `DataError` with ONNX Runtime's error when it fails."""
        self._arrays.upload()
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise run_failure(
                self._provider.runtime, self._arrays.graph.spec.name, error, f"with {self._provider.title}", "the GPU",
                "run it with --backend ort",
            ) from error
        self._arrays.download()


def _interface(session: Any, spec: GraphSpec) -> GraphInterface:
    """A session's tensors, and the inputs that it reads in host memory."""
    dtypes = {tensor.name: np.dtype(tensor.array_dtype) for tensor in (*spec.inputs, *spec.outputs)}
    memory = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
    return GraphInterface(spec, dtypes, frozenset(value.name for value, info in memory if info.name == HOST_MEMORY))


def _element_type(spec: TensorSpec) -> Any:
    """The element type for ONNX Runtime: numpy's type, or ONNX's number where numpy has none."""
    return BFLOAT16 if spec.dtype == "bfloat16" else np.dtype(spec.dtype).type
