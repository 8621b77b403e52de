"""Bundles on ONNX Runtime with an NVIDIA GPU: the graphs as they are, their buffers and the cache in device memory.

- Inputs, outputs and the cache are bound by device pointers; past and present are the same memory, which
  GroupQueryAttention and TensorScatter write in place. Everything goes on one stream of ours, and a run ends with one
  wait for it: ONNX Runtime's own is turned off.
- ONNX Runtime computes shapes on the CPU, and says of each input where it reads it. What it reads there is bound in
  pinned memory: bound on the device, it would be copied once, when it is bound, and never again. By its rules those are
  the rows' lengths, in graphs of the lowering ``ort``: GroupQueryAttention wants the longest there. Such graphs do not
  run ahead: nothing promises that what one step computes on the host is not written over by the next one too early.
- Steps are not captured as CUDA graphs: ONNX Runtime captures none with nodes on the CPU.

Not run on a GPU so far: the tests run it against stand-ins for onnxruntime and PyCUDA that compute on the CPU.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from flamingo_rt.bundle import Bundle
from flamingo_rt.contract import IN_PLACE, LANGUAGE_MODEL, GraphSpec, TensorSpec, graph_specs
from flamingo_rt.engines.execution_providers import Provider
from flamingo_rt.engines.gpu.cache_pool import Buffers
from flamingo_rt.engines.gpu.cuda import Cuda
from flamingo_rt.engines.gpu.device_cache import DeviceCache
from flamingo_rt.engines.gpu.device_run import BoundGraph, DeviceRun
from flamingo_rt.engines.gpu.gpu_backend import GpuBackend
from flamingo_rt.engines.ort import check_interface, run_failure
from flamingo_rt.errors import UsageError

BFLOAT16 = 16  # TensorProto.DataType: numpy has no such type
HOST_MEMORY = "Cpu"  # what ONNX Runtime calls it


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
        super().__init__(Cuda(), graph_specs(bundle.config, bundle.compute))
        self.name, self._provider = provider.backend, provider
        # GroupQueryAttention continues a filled cache with several tokens for one row alone.
        self.continues_batches = lowering != "ort"
        self._capacity = bundle.config.language.context if provider.fixed_capacity else None
        self._sessions, self._graphs = {}, {}
        with self._cuda.current():
            # The largest first: it is the likeliest to be refused.
            for name in sorted(self.specs, key=lambda name: name != LANGUAGE_MODEL):
                path = bundle.graph_path(name)
                capacity = self._capacity if name == LANGUAGE_MODEL else None
                session = provider.open(path, self._cuda.stream, capacity)
                if capacity is None:  # with one, its shapes have it in the place of a letter
                    check_interface(path, session, self.specs[name])
                self._sessions[name] = session
                self._graphs[name] = _bound_graph(session, self.specs[name])

    def _capacity_for(self, capacity: int) -> int:
        """A provider that takes one capacity alone gets that whatever is asked for."""
        return self._capacity or capacity

    def _cache(self, rows: int, capacity: int, buffers: Buffers | None) -> DeviceCache:
        return DeviceCache(
            self._cuda, self.specs[LANGUAGE_MODEL], IN_PLACE, rows, capacity,
            "use fewer shots or a smaller max_new_tokens", buffers,
        )

    def _on_host(self, graph: str) -> Collection[str]:
        return self._graphs[graph].on_host

    def _bound(
        self, graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], constant: Collection[str]
    ) -> DeviceRun:
        return _OrtRun(
            self._cuda, self._graphs[graph], self._sessions[graph], self._provider, inputs, outputs, constant
        )


class _OrtRun(DeviceRun):
    """One graph, bound to addresses once."""

    def __init__(
        self, cuda: Cuda, graph: BoundGraph, session: Any, provider: Provider, inputs: Mapping[str, Any],
        outputs: Mapping[str, Any], constant: Collection[str],
    ) -> None:
        super().__init__(cuda, graph, inputs, outputs, constant)
        self._session, self._provider = session, provider
        self._binding = session.io_binding()
        addresses = {**self._addresses, **self._cache_addresses()}
        for spec in graph.spec.inputs:
            device = "cpu" if spec.name in graph.on_host else "cuda"
            self._binding.bind_input(
                spec.name, device, 0, _element_type(spec), self._shapes[spec.name], addresses[spec.name]
            )
        present = {name: buffer.shape for name, buffer in self._present.items()}
        shapes = {**self._output_shapes, **present}
        for spec in graph.spec.outputs:
            self._binding.bind_output(
                spec.name, "cuda", 0, _element_type(spec), shapes[spec.name], addresses[spec.name]
            )
        self._options = provider.runtime.RunOptions()
        # Wait for the stream where we do; a run returns when all of it is on the stream.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def _run(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            self._cuda.synchronize()  # the caller's buffers go with the error, and may be in use
            raise run_failure(
                self._provider.runtime, self._bound.spec.name, error, f"with {self._provider.title}", "the GPU",
                "run it with --backend ort",
            ) from error


def _bound_graph(session: Any, spec: GraphSpec) -> BoundGraph:
    """What runs must know of a session's graph."""
    dtypes = {tensor.name: np.dtype(tensor.array_dtype) for tensor in (*spec.inputs, *spec.outputs)}
    memory = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
    return BoundGraph(spec, dtypes, frozenset(value.name for value, info in memory if info.name == HOST_MEMORY))


def _element_type(spec: TensorSpec) -> Any:
    """As ONNX Runtime takes it: numpy's type, or the number of ONNX's."""
    return BFLOAT16 if spec.dtype == "bfloat16" else np.dtype(spec.dtype).type
