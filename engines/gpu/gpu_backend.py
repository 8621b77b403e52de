"""A backend whose buffers are in device memory: the part of `Backend` that TensorRT and ONNX Runtime share.

It places the arrays on the device (`BoundArrays`), and the runtime binds a graph to them (`BoundGraph`): `BoundEngine`
or `ClassicLanguageModel` of TensorRT, `BoundSession` of ONNX Runtime. A `DeviceRun` enqueues such a graph and waits for
it; `AsyncGreedySteps` enqueue it ahead of the host, and copy tokens and lengths themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from typing import Any

import numpy as np

from flamingo_rt.backend import Cache, GreedySteps, bind_host_greedy_steps, present_buffers
from flamingo_rt.contract import LANGUAGE_MODEL, GraphSpec, Limits
from flamingo_rt.engines.gpu.async_greedy import AsyncGreedySteps
from flamingo_rt.engines.gpu.bound_arrays import BoundArrays, BoundGraph, GraphInterface
from flamingo_rt.engines.gpu.cache_pool import CachePool, PooledCache
from flamingo_rt.engines.gpu.cuda import Cuda
from flamingo_rt.engines.gpu.device_probe import DeviceProbe
from flamingo_rt.engines.tensorrt.versions import TensorRT


class DeviceRun:
    """A call that runs the ``graph`` bound to ``arrays``: its outputs are there when the call returns."""

    def __init__(self, cuda: Cuda, arrays: BoundArrays, graph: BoundGraph) -> None:
        self.arrays, self.graph, self._cuda = arrays, graph, cuda

    def __call__(self) -> None:
        with self._cuda.current():
            self.arrays.stage()
            try:
                self.graph.enqueue()
            finally:  # after a failure too: the error frees the caller's buffers, which may be in use
                self._cuda.synchronize()
            self.arrays.collect()


class GpuBackend(ABC):
    """A `Backend` on one GPU."""

    name: str
    continues_batches: bool
    reads_device_arrays = True
    limits: Limits | None = None

    def __init__(
        self, cuda: Cuda, specs: dict[str, GraphSpec], interfaces: Mapping[str, GraphInterface], pool: CachePool,
        tensorrt: TensorRT | None = None,
    ) -> None:
        """``specs`` have the cache in place, whatever form the graphs have; ``interfaces`` are the graphs' own.
        ``tensorrt`` compiles the matrix product that `device_probe` times; without it none is timed."""
        self.specs = specs
        self._cuda, self._interfaces, self._pool, self._tensorrt = cuda, interfaces, pool, tensorrt

    @abstractmethod
    def cache(self, rows: int, capacity: int) -> PooledCache:
        """See `Backend.cache`. Raises `DataError` for more tokens than the graphs take, or than there is memory for."""

    @abstractmethod
    def _bind_graph(self, arrays: BoundArrays) -> BoundGraph:
        """Bind the graph that ``arrays`` are for (``arrays.interface``) to them."""

    def device_probe(self) -> DeviceProbe:
        """See `Backend.device_probe`."""
        dtype = next(spec.dtype for spec in self.specs[LANGUAGE_MODEL].inputs if "C" in spec.shape)
        return DeviceProbe(self._cuda, self._tensorrt, dtype, self._pool.allocate)

    def available_bytes(self) -> int | None:
        """Free device memory, the unused cache's included; None where it is the machine's own."""
        with self._cuda.current():
            free = self._cuda.free_bytes()
        return None if free is None else free + self._pool.unused_bytes

    def bind(
        self, graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], constant: Collection[str] = ()
    ) -> Callable[[], None]:
        """See `Backend.bind`. Returns a `DeviceRun`, except for past and present in numpy arrays: these are copied to
        a cache and back at each call.

        Inputs may be device arrays of other libraries, which are read where they are. An output that is left out stays
        on the device.
        Raises `DataError` for sizes that the graphs do not take and for too little memory, `ValueError` for arrays of
        another type or form.
        """
        past = [spec.name for spec in self.specs[graph].inputs if "C" in spec.shape]
        if past and isinstance(inputs[past[0]], np.ndarray):
            return self._bind_copied(graph, past, inputs, outputs)
        with self._cuda.current():
            arrays = self._arrays(graph, inputs, outputs, constant)
            return DeviceRun(self._cuda, arrays, self._bind_graph(arrays))

    @property
    def steps_ahead(self) -> int:
        """See `Backend.steps_ahead`. One, which runs while the host reads the result of the previous step; none where
        the graph reads any of its inputs in host memory."""
        return 0 if self._interfaces[LANGUAGE_MODEL].on_host else 1

    def bind_greedy_steps(
        self, cache: Cache, inputs: Mapping[str, Any], outputs: Mapping[str, Any], constant: Collection[str] = ()
    ) -> GreedySteps:
        """See `Backend.bind_greedy_steps`. Where the cache served an answer before, with inputs of these shapes, its
        steps are used again, with the CUDA graph that they may have."""
        if not self.steps_ahead:
            return bind_host_greedy_steps(self, cache, inputs, outputs, constant)
        past, shapes = cache.buffers(), tuple((name, array.shape) for name, array in inputs.items())
        kept = cache.kept_steps(shapes) if isinstance(cache, PooledCache) else None
        if kept is not None:
            kept.renew(inputs)
            return kept
        with self._cuda.current():
            arrays = self._arrays(
                LANGUAGE_MODEL, {**inputs, **past}, {**outputs, **present_buffers(past)}, constant, copies=False
            )
            steps = AsyncGreedySteps(self._cuda, arrays, self._bind_graph(arrays), self.steps_ahead)
        if isinstance(cache, PooledCache):
            cache.keep_steps(steps, shapes)
        return steps

    def _arrays(
        self, graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], constant: Collection[str],
        copies: bool = True,
    ) -> BoundArrays:
        return BoundArrays(
            self._cuda, self._pool.allocate, self._interfaces[graph], inputs, outputs, constant, copies
        )

    def _bind_copied(
        self, graph: str, past: list[str], inputs: Mapping[str, Any], outputs: Mapping[str, Any]
    ) -> Callable[[], None]:
        """Bind with the cache in numpy arrays [B, Hk, C, d], which serves checks."""
        arrays: dict[str, np.ndarray] = {name: inputs[name] for name in past}
        rows, _, capacity, _ = arrays[past[0]].shape

        def call() -> None:
            with closing(self.cache(rows, capacity)) as cache:
                for row in range(rows):
                    cache.load([row], {name: array[row : row + 1] for name, array in arrays.items()}, capacity)
                buffers = cache.buffers()
                self.bind(graph, {**inputs, **buffers}, {**outputs, **present_buffers(buffers)})()
                for row in range(rows):
                    for name, saved in cache.save(capacity, row).items():
                        arrays[name][row] = saved[0]

        return call
