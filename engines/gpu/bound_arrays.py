"""The arrays that a graph on a GPU is bound to: where each lies on the device, and how its content gets there and back.
The same for TensorRT and ONNX Runtime.

Host arrays of a step go through pinned memory; constant inputs are uploaded once; device arrays of other libraries and
the cache are used where they are; an output that nobody asked for gets memory on the device and stays there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from flamingo_rt.contract import GraphSpec, TensorSpec
from flamingo_rt.device_arrays import DeviceArray, device_array, is_device_array
from flamingo_rt.engines.gpu.cuda import ALIGNMENT, Allocate, Cuda, aligned
from flamingo_rt.engines.gpu.device_cache import CacheBuffer

Addresses = dict[str, int]


@dataclass(frozen=True)
class GraphInterface:
    """A graph's tensors as its runtime takes them: ``spec`` has their names and shapes, ``dtypes`` the types of arrays,
    which may differ from the contract's; ``on_host`` are the inputs that the runtime reads in host memory."""

    spec: GraphSpec
    dtypes: Mapping[str, np.dtype]
    on_host: Collection[str] = ()


@dataclass(frozen=True)
class _Placed:
    """A numpy array that is an input or output, and the ``address`` at which the graph has it. ``staged`` is copied to
    or from there: an array of the graph's type, pinned for steps; otherwise it may be ``array`` itself."""

    array: np.ndarray
    staged: np.ndarray
    address: int


class BoundArrays:
    """Inputs and outputs that a graph is bound to, and the memory for them: pinned and on the device.

    ``host`` are the caller's numpy arrays, ``past`` and ``present`` the cache's buffers, ``shapes`` those of all inputs
    and ``output_shapes`` those of all outputs but present. ``addresses`` are those of everything but the cache
    (`cache_addresses`), which a language model of the form ``appended`` is given at other addresses in each run.
    ``repeated`` says that some inputs are constant: the arrays are those of a step, which is run many times.
    """

    def __init__(
        self, cuda: Cuda, allocate: Allocate, interface: GraphInterface, inputs: Mapping[str, Any],
        outputs: Mapping[str, Any], constant: Collection[str], copies: bool = True,
    ) -> None:
        """Take arrays as for `Backend.bind`, and upload the constant inputs. An output that is not in ``outputs`` stays
        on the device. Without ``copies``, `upload` and `download` do nothing: the caller copies the other inputs and
        the outputs. Make it, and call every method, within `Cuda.current`.

        Raises `DataError` for too little device memory, `ValueError` for arrays of another type or form.
        """
        self._cuda, self.interface = cuda, interface
        self.repeated = bool(constant)  # what runs once gains nothing by pinned memory
        self.past, self.present = (
            {name: value for name, value in tensors.items() if isinstance(value, CacheBuffer)}
            for tensors in (inputs, outputs)
        )
        self._foreign = {
            spec.name: self._foreign_array(spec, inputs[spec.name])
            for spec in interface.spec.inputs if is_device_array(inputs[spec.name])
        }
        host_inputs = [s for s in interface.spec.inputs if s.name not in self.past and s.name not in self._foreign]
        host_outputs = [s for s in interface.spec.outputs if s.name in outputs and s.name not in self.present]
        self.host: dict[str, np.ndarray] = {
            **{s.name: inputs[s.name] for s in host_inputs}, **{s.name: outputs[s.name] for s in host_outputs}
        }
        for spec in (*host_inputs, *host_outputs):
            self._check_array(spec, self.host[spec.name])
        self.shapes: dict[str, tuple[int, ...]] = {
            **{spec.name: self.host[spec.name].shape for spec in host_inputs},
            **{name: array.shape for name, array in self._foreign.items()},
            **{name: buffer.shape for name, buffer in self.past.items()},
        }
        kept = self._shapes_of([spec for spec in interface.spec.outputs if spec.name not in outputs])
        self.output_shapes = {**{spec.name: self.host[spec.name].shape for spec in host_outputs}, **kept}
        copied = self.host if copies else [name for name in self.host if name in constant or name in interface.on_host]
        places, kept_addresses = self._placed(allocate, kept, copied)
        self.addresses: Addresses = {
            **{name: tensor.address for name, tensor in places.items()},
            **{name: array.address for name, array in self._foreign.items()},
            **kept_addresses,
        }
        self._constant = {name: places[name] for name in self.host if name in constant}
        changing = [spec.name for spec in host_inputs if spec.name not in constant] if copies else []
        self._staged = [places[name] for name in changing]
        self._uploaded = [places[name] for name in changing if name not in interface.on_host]
        self._outputs = [places[spec.name] for spec in host_outputs] if copies else []
        self.renew({name: tensor.array for name, tensor in self._constant.items()})

    @property
    def cache_addresses(self) -> Addresses:
        """Addresses of past and present, for a graph that writes the cache in place."""
        return {name: buffer.address for name, buffer in {**self.past, **self.present}.items()}

    def renew(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Upload new content of the constant inputs, of the same shapes, and wait for it."""
        for name, tensor in self._constant.items():
            tensor.staged[...] = inputs[name]
            if name not in self.interface.on_host:
                self._cuda.upload(tensor.address, tensor.staged)
        self._cuda.synchronize()

    def stage(self) -> None:
        """Copy the inputs' present content to where `upload` reads it, and wait for the streams that write the device
        arrays of other libraries. The previous run must have been waited for."""
        for array in self._foreign.values():
            if array.stream is not None:
                self._cuda.wait_for(array.stream)
        for tensor in self._staged:
            tensor.staged[...] = tensor.array

    def upload(self) -> None:
        """Put copies of the staged inputs, from host to device, on the stream."""
        for tensor in self._uploaded:
            self._cuda.upload(tensor.address, tensor.staged)

    def download(self) -> None:
        """Put copies of the outputs, from device to host, on the stream."""
        for tensor in self._outputs:
            self._cuda.download(tensor.staged, tensor.address)

    def collect(self) -> None:
        """Copy what `download` has copied to the caller's arrays. The run must have been waited for."""
        for tensor in self._outputs:
            if tensor.staged is not tensor.array:
                tensor.array[...] = tensor.staged

    def _check_array(self, spec: TensorSpec, array: Any) -> None:
        if not isinstance(array, np.ndarray) or array.dtype != spec.array_dtype or not array.flags.c_contiguous:
            graph = self.interface.spec.name
            raise ValueError(f"{graph}: {spec.name} must be a C-contiguous {spec.array_dtype} array")

    def _foreign_array(self, spec: TensorSpec, value: Any) -> DeviceArray:
        """An input that is in device memory already. Raises `ValueError` when the graph cannot read it there."""
        array = device_array(value, self._cuda.stream)
        wanted = self.interface.dtypes[spec.name]
        if spec.name in self.interface.on_host:
            raise ValueError(f"{spec.name} is a device array: this graph reads it in host memory")
        if array.dtype != wanted or array.address % ALIGNMENT:
            raise ValueError(
                f"{spec.name} is a device array of {array.dtype} at {array.address:#x}: it must be {wanted}, at a "
                f"multiple of {ALIGNMENT} bytes"
            )
        return array

    def _shapes_of(self, outputs: Collection[TensorSpec]) -> dict[str, tuple[int, ...]]:
        """The outputs' shapes, which follow from those of the inputs."""
        sizes = {
            letter: size for spec in self.interface.spec.inputs
            for letter, size in zip(spec.shape, self.shapes[spec.name], strict=True) if isinstance(letter, str)
        }
        return {spec.name: spec.resolve(sizes) for spec in outputs}

    def _placed(
        self, allocate: Allocate, kept: Mapping[str, tuple[int, ...]], staged_names: Collection[str]
    ) -> tuple[dict[str, _Placed], Addresses]:
        """Allocate one piece of device memory for the host arrays and for the outputs ``kept`` on the device. Returns
        the place of each host array, and the addresses of the kept outputs. Only arrays named in ``staged_names`` get
        an array to copy from or to."""
        dtypes, offsets, total = self.interface.dtypes, {}, 0
        for name, shape in {**{name: array.shape for name, array in self.host.items()}, **kept}.items():
            if name not in self.interface.on_host:
                offsets[name] = total
                total += aligned(math.prod(shape) * dtypes[name].itemsize)
        self._memory = allocate(total, f"inputs and outputs of the {self.interface.spec.name}")
        addresses = {name: self._memory.address + offset for name, offset in offsets.items()}
        places = {}
        for name, array in self.host.items():
            staged = self._staging(array, dtypes[name]) if name in staged_names else array
            places[name] = _Placed(array, staged, addresses.get(name, staged.ctypes.data))
        return places, {name: addresses[name] for name in kept}

    def _staging(self, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
        if self.repeated:
            return self._cuda.pinned(array.shape, dtype)
        return array if array.dtype == dtype else np.empty(array.shape, dtype)


class BoundGraph(Protocol):
    """A graph bound to arrays, made once by its runtime and run any number of times."""

    def enqueue(self) -> None:
        """Put one run on the stream, without waiting: the arrays' `BoundArrays.upload`, the graph, and their
        `BoundArrays.download`. Raises `DataError` when the runtime refuses it."""
        ...
