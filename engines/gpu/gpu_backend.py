"""A backend whose buffers are in device memory: the part of `Backend` that TensorRT and ONNX Runtime have in common."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from flamingo_rt.backend import HostGreedySteps
from flamingo_rt.contract import CACHE_LENGTH, LANGUAGE_MODEL, GraphSpec, Limits
from flamingo_rt.engines.gpu.async_greedy import AsyncGreedySteps
from flamingo_rt.engines.gpu.cache_pool import Buffers, CachePool
from flamingo_rt.engines.gpu.cuda import Cuda
from flamingo_rt.engines.gpu.device_cache import CacheBuffer, DeviceCache
from flamingo_rt.engines.gpu.device_probe import DeviceProbe
from flamingo_rt.engines.gpu.device_run import DeviceRun
from flamingo_rt.engines.tensorrt.versions import TensorRT


class GpuBackend(ABC):
    """An `Backend` on one GPU. ``specs`` are the graphs' names, types and shapes, with the cache in place whatever form
    the graphs have: that is what a saved prompt has too."""

    reads_device_arrays = True
    limits: Limits | None = None
    _tensorrt: TensorRT | None = None  # what compiles a product to be timed

    def __init__(self, cuda: Cuda, specs: dict[str, GraphSpec]) -> None:
        self._cuda, self.specs, self._kept = cuda, specs, CachePool()
        drop = weakref.WeakMethod(self._kept.drop)  # kept steps hold ``cuda``: no circle around memory
        cuda.make_room = lambda: (kept := drop()) is not None and kept()

    def cache(self, rows: int, capacity: int) -> DeviceCache:
        """On the device. Raises `DataError` for more tokens than the graphs take, or than there is memory for."""
        capacity = self._capacity_for(capacity)
        return self._kept.cache(rows, capacity, lambda buffers: self._cache(rows, capacity, buffers))

    @abstractmethod
    def _capacity_for(self, capacity: int) -> int:
        """What a cache must have for so many tokens. Raises `DataError` for more than the graphs take."""

    @abstractmethod
    def _cache(self, rows: int, capacity: int, buffers: Buffers | None) -> DeviceCache:
        """As `cache`, of a kept cache's ``buffers`` if there are some."""

    def device_probe(self) -> DeviceProbe:
        """What measures how fast the GPU is."""
        dtype = next(spec.dtype for spec in self.specs[LANGUAGE_MODEL].inputs if "C" in spec.shape)
        return DeviceProbe(self._cuda, self._tensorrt, dtype)

    def available_bytes(self) -> int | None:
        """Device memory that is free, or None where it is the machine's own."""
        with self._cuda.current():
            free = self._cuda.free_bytes()
        return None if free is None else free + self._kept.spare_bytes

    def bind(
        self, graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], constant: Collection[str] = ()
    ) -> Callable[[], None]:
        """A call that reads ``inputs`` and writes ``outputs`` each time it is made: a `DeviceRun`, where the cache is
        on the device.

        They are numpy arrays, or arrays in device memory of other libraries, whose content is then used where it is.
        Past and present are a `cache`'s buffers; numpy arrays are copied to the device and back at each call. An output
        that is left out stays on the device.
        Raises `DataError` for sizes that the graphs do not take, `ValueError` for arrays of another type or form.
        """
        past = [spec.name for spec in self.specs[graph].inputs if "C" in spec.shape]
        if past and isinstance(inputs[past[0]], np.ndarray):
            return self._bind_copied(graph, past, inputs, outputs, constant)
        with self._cuda.current():
            return self._bound(graph, inputs, outputs, constant)

    @property
    def steps_ahead(self) -> int:
        """One, which runs while the host looks at what the one before it chose; none where the graph reads any of its
        inputs on the host."""
        return 0 if self._on_host(LANGUAGE_MODEL) else 1

    def greedy_steps(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], constant: Collection[str] = ()
    ) -> AsyncGreedySteps | HostGreedySteps:
        """As `Backend.greedy_steps`, with the cache on the device. Steps over a cache that was kept are those of the
        answer before."""
        past = {name: value for name, value in inputs.items() if isinstance(value, CacheBuffer)}
        if not self.steps_ahead or not past:
            return HostGreedySteps(self.bind(LANGUAGE_MODEL, inputs, outputs, constant), inputs, outputs)
        shapes = tuple((name, inputs[name].shape) for name in inputs if name not in past)
        steps = self._kept.steps(past, shapes)
        if steps is not None:
            steps.renew(inputs)
            return steps
        with self._cuda.current():
            run = self._bound(LANGUAGE_MODEL, inputs, outputs, constant)
            steps = AsyncGreedySteps(self._cuda, run, inputs[CACHE_LENGTH], self.steps_ahead)
        self._kept.keep(past, shapes, steps)
        return steps

    def _on_host(self, graph: str) -> Collection[str]:
        """The inputs that a graph reads in host memory."""
        return ()

    @abstractmethod
    def _bound(
        self, graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], constant: Collection[str]
    ) -> DeviceRun:
        """As `bind`, with the cache on the device."""

    def _bind_copied(
        self, graph: str, past: list[str], inputs: Mapping[str, Any], outputs: Mapping[str, Any],
        constant: Collection[str],
    ) -> Callable[[], None]:
        """With the cache in numpy arrays [B, Hk, C, d]: for checks."""
        arrays = {name: inputs[name] for name in past}
        rows, _, capacity, _ = arrays[past[0]].shape
        cache = self.cache(rows, capacity)
        buffers = cache.buffers()
        present = [spec.name for spec in self.specs[graph].outputs if "C" in spec.shape]
        written = dict(zip(present, buffers.values(), strict=True))
        run = self.bind(graph, {**inputs, **buffers}, {**outputs, **written}, constant)

        def call() -> None:
            for row in range(rows):
                cache.load([row], {name: array[row : row + 1] for name, array in arrays.items()}, capacity)
            run()
            for row in range(rows):
                for name, saved in cache.save(capacity, row).items():
                    arrays[name][row] = saved[0]

        return call
