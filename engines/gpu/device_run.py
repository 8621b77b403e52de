"""One run of a graph on a GPU, bound to its arrays: what TensorRT and ONNX Runtime have in common.

Host arrays go through pinned memory; what never changes between runs is uploaded once; arrays of other libraries and
the cache are used where they are; outputs that nobody asked for get memory, and stay there. A run is four parts, each
of which can be called by itself: `stage` (host to pinned memory), `launch` (everything that goes on the stream; it
does not wait), `wait`, and `collect` (pinned memory to the caller). Not run on a GPU so far.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flamingo_rt.contract import GraphSpec, TensorSpec
from flamingo_rt.device_arrays import DeviceArray, device_array, is_device_array
from flamingo_rt.engines.gpu.cuda import ALIGNMENT, Cuda, aligned
from flamingo_rt.engines.gpu.device_cache import CacheBuffer

Addresses = dict[str, int]


@dataclass(frozen=True)
class BoundGraph:
    """What a run must know of a graph: ``dtypes`` are the types of arrays that the runtime takes, which may differ from
    the contract's; ``on_host`` the inputs that it reads in host memory."""

    spec: GraphSpec
    dtypes: Mapping[str, np.dtype]
    on_host: Collection[str] = ()


@dataclass(frozen=True)
class Placed:
    """An input or output in host memory, and where the graph has it. ``staged`` is what is copied to or from there: a
    pinned array, or one of the graph's type."""

    array: np.ndarray
    staged: np.ndarray
    address: int


class DeviceRun(ABC):
    """One graph, bound. Whoever holds it holds its buffers."""

    def __init__(
        self, cuda: Cuda, graph: BoundGraph, inputs: Mapping[str, Any], outputs: Mapping[str, Any],
        constant: Collection[str],
    ) -> None:
        """As `Backend.bind`; an output that is not in ``outputs`` stays on the device. Make it, and call every method,
        within `Cuda.current`.

        Raises `DataError` for too little device memory, `ValueError` for arrays of another type or form.
        """
        self._cuda, self._bound = cuda, graph
        self._repeated = bool(constant)  # what is run once gains nothing by pinned memory
        self._past, self._present = (
            {name: value for name, value in tensors.items() if isinstance(value, CacheBuffer)}
            for tensors in (inputs, outputs)
        )
        self._foreign = {
            spec.name: self._foreign_array(spec, inputs[spec.name])
            for spec in graph.spec.inputs if is_device_array(inputs[spec.name])
        }
        host_inputs = [s for s in graph.spec.inputs if s.name not in self._past and s.name not in self._foreign]
        host_outputs = [s for s in graph.spec.outputs if s.name in outputs and s.name not in self._present]
        arrays = {**{s.name: inputs[s.name] for s in host_inputs}, **{s.name: outputs[s.name] for s in host_outputs}}
        for spec in (*host_inputs, *host_outputs):
            self._check_array(spec, arrays[spec.name])
        self._shapes = {
            **{spec.name: arrays[spec.name].shape for spec in host_inputs},
            **{name: array.shape for name, array in self._foreign.items()},
            **{name: buffer.shape for name, buffer in self._past.items()},
        }
        kept = self._shapes_of([spec for spec in graph.spec.outputs if spec.name not in outputs])
        self._output_shapes = {**{spec.name: arrays[spec.name].shape for spec in host_outputs}, **kept}
        places, kept_addresses = self._placed(arrays, kept)
        self._constant = {name: places[name] for name in arrays if name in constant}
        self._inputs = [places[spec.name] for spec in host_inputs if spec.name not in constant]
        self._outputs = [places[spec.name] for spec in host_outputs]
        # Of everything but the cache, which a graph that appends to it has elsewhere at each run.
        self._addresses: Addresses = {
            **{name: tensor.address for name, tensor in places.items()},
            **{name: array.address for name, array in self._foreign.items()},
            **kept_addresses,
        }
        self.renew({name: tensor.array for name, tensor in self._constant.items()})
        self._uploaded = [places[s.name] for s in host_inputs if s.name not in {*constant, *graph.on_host}]

    @property
    def dtypes(self) -> Mapping[str, np.dtype]:
        """The types of arrays that the graph takes and gives."""
        return self._bound.dtypes

    def __call__(self) -> None:
        """Run it; the outputs are there when this returns."""
        with self._cuda.current():
            self.stage()
            self.launch()
            self.wait()
            self.collect()

    def address(self, name: str) -> int:
        """Where the graph has an input or output that is not the cache: on the device, or, of an input that it reads
        there, in host memory."""
        return self._addresses[name]

    def renew(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Take new content of the constant inputs, of the same shapes."""
        for name, tensor in self._constant.items():
            tensor.staged[...] = inputs[name]
            if name not in self._bound.on_host:
                self._cuda.upload(tensor.address, tensor.staged)
        self._cuda.synchronize()

    def stage(self) -> None:
        """Take what the inputs hold now. Not before a run that reads what was staged before has been waited for."""
        for array in self._foreign.values():
            if array.stream is not None:
                self._cuda.wait_for(array.stream)
        for tensor in self._inputs:
            tensor.staged[...] = tensor.array

    def launch(self) -> None:
        """Put uploads, the run and downloads on the stream."""
        self._enqueue()

    def wait(self) -> None:
        """Wait until all that was launched is done."""
        self._cuda.synchronize()

    def collect(self) -> None:
        """Give the outputs of a run that was waited for to the caller."""
        for tensor in self._outputs:
            if tensor.staged is not tensor.array:
                tensor.array[...] = tensor.staged

    def leave_copies_out(self) -> None:
        """From now on `launch` puts the graph alone on the stream: whoever calls it moves inputs and outputs."""
        self._inputs = self._uploaded = self._outputs = []

    @abstractmethod
    def _run(self) -> None:
        """Put the graph itself on the stream."""

    def _enqueue(self) -> None:
        for tensor in self._uploaded:
            self._cuda.upload(tensor.address, tensor.staged)
        self._run()
        for tensor in self._outputs:
            self._cuda.download(tensor.staged, tensor.address)

    def _cache_addresses(self) -> Addresses:
        """Of past and present, where they are in place."""
        return {name: buffer.address for name, buffer in {**self._past, **self._present}.items()}

    def _check_array(self, spec: TensorSpec, array: Any) -> None:
        if not isinstance(array, np.ndarray) or array.dtype != spec.array_dtype or not array.flags.c_contiguous:
            raise ValueError(f"{self._bound.spec.name}: {spec.name} must be a C-contiguous {spec.array_dtype} array")

    def _foreign_array(self, spec: TensorSpec, value: Any) -> DeviceArray:
        """An input that lies in device memory already. Raises `ValueError` when the graph cannot read it there."""
        array = device_array(value, self._cuda.stream)
        wanted = self._bound.dtypes[spec.name]
        if spec.name in self._bound.on_host:
            raise ValueError(f"{spec.name} is a device array: this graph reads it in host memory")
        if array.dtype != wanted or array.address % ALIGNMENT:
            raise ValueError(
                f"{spec.name} is a device array of {array.dtype} at {array.address:#x}: it must be {wanted}, at a "
                f"multiple of {ALIGNMENT} bytes"
            )
        return array

    def _shapes_of(self, outputs: Collection[TensorSpec]) -> dict[str, tuple[int, ...]]:
        """By the sizes that the inputs have."""
        sizes = {
            letter: size for spec in self._bound.spec.inputs
            for letter, size in zip(spec.shape, self._shapes[spec.name], strict=True) if isinstance(letter, str)
        }
        return {spec.name: spec.resolve(sizes) for spec in outputs}

    def _placed(
        self, arrays: Mapping[str, np.ndarray], kept: Mapping[str, tuple[int, ...]]
    ) -> tuple[dict[str, Placed], Addresses]:
        """A place for each array, and on the device for each shape that is kept there, in one piece of memory."""
        dtypes, offsets, total = self._bound.dtypes, {}, 0
        for name, shape in {**{name: array.shape for name, array in arrays.items()}, **kept}.items():
            if name not in self._bound.on_host:
                offsets[name] = total
                total += aligned(math.prod(shape) * dtypes[name].itemsize)
        self._memory = self._cuda.allocate(total, f"inputs and outputs of the {self._bound.spec.name}")
        addresses = {name: self._memory.address + offset for name, offset in offsets.items()}
        places = {}
        for name, array in arrays.items():
            staged = self._staging(array, dtypes[name])
            places[name] = Placed(array, staged, addresses.get(name, staged.ctypes.data))
        return places, {name: addresses[name] for name in kept}

    def _staging(self, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
        if self._repeated:
            return self._cuda.pinned(array.shape, dtype)
        return array if array.dtype == dtype else np.empty(array.shape, dtype)
