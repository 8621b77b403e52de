"""Bundles on TensorRT and TensorRT-RTX: the engines that ``flamingo-rt build`` made, their buffers in device memory.

- The cache stays on the device. Of the lowering ``tensorrt`` it is one buffer, past and present at once, that the
  engine writes in place. Of ``tensorrt-classic`` the engine reads what is cached and gives the new tokens alone: rows
  of one length have them written straight to their slots, for others they are moved there.
- What never changes between steps (media, their index) is uploaded once. A step uploads its token ids and lengths and
  downloads its logits through pinned memory, and is replayed as a CUDA graph: on the first run its shapes are set, on
  the second it is captured. A classic engine's shapes change with every token, so its steps are not captured.
- Tokens are chosen on the host, from the logits in pinned memory (50k of them are 200 kB a row): sampling, penalties,
  log-probabilities and beams all need them there, and so do stop texts. Choosing on the device would take a kernel, of
  nvcc, which devices do not have, or of another library (NVRTC), or one output more of the graphs. So each step ends
  with one wait for the stream.

Not run on a GPU so far: the tests run it against a stand-in for TensorRT and PyCUDA that computes with ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flamingo_rt.bundle import Bundle
from flamingo_rt.contract import APPENDED, CACHE_FORMS, LANGUAGE_MODEL, TensorSpec, graph_specs
from flamingo_rt.engines.compiled_graph import CompiledGraph, Loader, Profile
from flamingo_rt.engines.cuda import ALIGNMENT, Cuda, DeviceMemory, Graph, aligned
from flamingo_rt.engines.device_arrays import DeviceArray, device_array, is_device_array
from flamingo_rt.engines.device_cache import CacheBuffer, DeviceCache
from flamingo_rt.engines.device_probe import DeviceProbe
from flamingo_rt.engines.engine_files import EngineFolder, build_command
from flamingo_rt.engines.tensorrt_callbacks import Caught, make_log
from flamingo_rt.engines.tensorrt_module import TensorRT
from flamingo_rt.errors import DataError

NAME = "tensorrt"
Addresses = dict[str, int]


class TensorRtEngine:
    """The three graphs as TensorRT engines on one GPU. ``specs`` are the graphs' names, types and shapes, with the
    cache in place whatever form the engines have: that is what a saved prompt has too."""

    name = NAME
    continues_batches = True

    def __init__(self, bundle: Bundle, engines: EngineFolder, tensorrt: TensorRT) -> None:
        """Load the ``engines`` of a bundle, as `read_engines` gave them.

        Raises `DependencyError` without PyCUDA or a GPU, `DataError` when an engine cannot be loaded or is none of this
        model's.
        """
        self._cuda, form = Cuda(), CACHE_FORMS[engines.lowering]
        self._tensorrt, self._compute = tensorrt, engines.compute
        self.specs, self._form = graph_specs(bundle.config, engines.compute), form
        self.description = f"{tensorrt.title}, {engines.path.name}"
        log = make_log(tensorrt.module, Caught())
        rebuild = build_command(bundle.path, engines.target, engines)
        with self._cuda.current():
            runtime = tensorrt.module.Runtime(log)
            if engines.options.version_compatible:
                runtime.engine_host_code_allowed = True  # such an engine brings the code that runs it
            loader = Loader(tensorrt.module, runtime, log, self._cuda, rebuild)
            stripped = engines.options.weight_stripped
            self._graphs = {
                name: loader.load(engines.engine_path(name), spec, bundle.graph_path(name) if stripped else None)
                for name, spec in graph_specs(bundle.config, engines.compute, form).items()
            }

    def device_probe(self) -> DeviceProbe:
        """What measures how fast the GPU is."""
        return DeviceProbe(self._cuda, self._tensorrt, self._compute)

    def cache(self, rows: int, capacity: int) -> DeviceCache:
        """On the device. Raises `DataError` for more tokens than the engine was built for, or than there is memory for.

        An engine that writes in place takes one capacity alone, so all of it is there whatever is asked for."""
        graph = self._graphs[LANGUAGE_MODEL]
        past = next(spec for spec in graph.spec.inputs if "C" in spec.shape)
        least, most = graph.range(past.name, past.shape.index("C"))
        if capacity > most:
            raise DataError(
                f"{capacity:,} tokens are asked for, {graph.path} holds {most:,}: use fewer shots or a smaller "
                "max_new_tokens, or build it for more (flamingo-rt build --capacity)"
            )
        return DeviceCache(self._cuda, graph.spec, self._form, rows, max(least, capacity))

    def bind(
        self, graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], constant: Collection[str] = ()
    ) -> Callable[[], None]:
        """A call that reads ``inputs`` and writes ``outputs`` each time it is made.

        They are numpy arrays, or arrays in device memory of other libraries, whose content is then used where it is.
        Past and present are a `cache`'s buffers; numpy arrays are copied to the device and back at each call.
        Raises `DataError` for sizes that the engine was not built for, `ValueError` for arrays of another type or form.
        """
        past = [spec.name for spec in self.specs[graph].inputs if "C" in spec.shape]
        if past and isinstance(inputs[past[0]], np.ndarray):
            return self._bind_copied(graph, past, inputs, outputs, constant)
        with self._cuda.current():
            kind = _AppendingRun if self._form == APPENDED and graph == LANGUAGE_MODEL else _Run
            return kind(self._cuda, self._graphs[graph], inputs, outputs, constant)

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


@dataclass(frozen=True)
class _Tensor:
    """An input or output in host memory, and its place on the device. ``staged`` is what is copied: a pinned array, or
    one of the engine's type."""

    array: np.ndarray
    staged: np.ndarray
    address: int


class _Run:
    """One graph, bound. Whoever holds it holds its buffers."""

    def __init__(
        self, cuda: Cuda, graph: CompiledGraph, inputs: Mapping[str, Any], outputs: Mapping[str, Any],
        constant: Collection[str],
    ) -> None:
        self._cuda, self._graph = cuda, graph
        self._repeated = bool(constant)  # what is run once gains nothing by pinned memory and graphs
        self._use = object()  # a profile keeps what was last set up: not this, which would keep the cache
        self._past, self._present = (
            {name: value for name, value in tensors.items() if isinstance(value, CacheBuffer)}
            for tensors in (inputs, outputs)
        )
        self._foreign = {
            spec.name: self._foreign_array(spec, inputs[spec.name])
            for spec in graph.spec.inputs if is_device_array(inputs[spec.name])
        }
        host_inputs = [s for s in graph.spec.inputs if s.name not in self._past and s.name not in self._foreign]
        host_outputs = [s for s in graph.spec.outputs if s.name not in self._present]
        arrays = {**{s.name: inputs[s.name] for s in host_inputs}, **{s.name: outputs[s.name] for s in host_outputs}}
        for spec in (*host_inputs, *host_outputs):
            _check_array(graph, spec, arrays[spec.name])
        places = self._placed(arrays)
        self._constant = {name: places[name] for name in arrays if name in constant}
        self._inputs = [places[spec.name] for spec in host_inputs if spec.name not in constant]
        self._outputs = [places[spec.name] for spec in host_outputs]
        self._addresses: Addresses = {
            **{name: tensor.address for name, tensor in places.items()},
            **{name: array.address for name, array in self._foreign.items()},
        }
        self._shapes = {
            **{spec.name: arrays[spec.name].shape for spec in host_inputs},
            **{name: array.shape for name, array in self._foreign.items()},
            **{name: buffer.shape for name, buffer in self._past.items()},
        }
        self._output_shapes = {spec.name: arrays[spec.name].shape for spec in host_outputs}
        self._profile: Profile = graph.profile(self._shapes)
        self._captured: Graph | None = None
        self._capture = self._repeated
        for tensor in self._constant.values():
            tensor.staged[...] = tensor.array
            cuda.upload(tensor.address, tensor.staged)
        cuda.synchronize()

    def __call__(self) -> None:
        """Run it; the outputs are there when this returns."""
        with self._cuda.current():
            for array in self._foreign.values():
                if array.stream is not None:
                    self._cuda.wait_for(array.stream)
            for tensor in self._inputs:
                tensor.staged[...] = tensor.array
            self._launch()
            self._cuda.synchronize()
            for tensor in self._outputs:
                if tensor.staged is not tensor.array:
                    tensor.array[...] = tensor.staged

    def _launch(self) -> None:
        """Put uploads, the run and downloads on the stream."""
        cuda, profile = self._cuda, self._profile
        if profile.user is not self._use:  # the first run here, or another binding was here since
            self._captured = None
            self._set_up()
            self._enqueue()
            return
        if self._captured is None and self._capture:
            self._capture = profile.capturable(cuda.stream)
            if self._capture:
                self._captured = self._try_to_capture()
        if self._captured is not None:
            self._captured.launch()
        else:
            self._enqueue()

    def _set_up(self) -> None:
        self._profile.use(self._use, self._shapes)
        for name, expected in self._output_shapes.items():
            if self._profile.shape(name) != expected:
                raise self._graph.failure(f"writes {name} as {list(self._profile.shape(name))}, not {list(expected)}")
        buffers = {name: buffer.address for name, buffer in {**self._past, **self._present}.items()}
        self._profile.bind({**self._addresses, **buffers})

    def _try_to_capture(self) -> Graph | None:
        """A graph of one run, or None where it cannot be captured: what cannot, is run as it is from then on."""
        try:
            captured = self._cuda.capture(self._enqueue)
        except (RuntimeError, DataError):
            captured = None
        self._capture = captured is not None
        return captured

    def _enqueue(self) -> None:
        for tensor in self._inputs:
            self._cuda.upload(tensor.address, tensor.staged)
        self._profile.run(self._cuda.stream)
        for tensor in self._outputs:
            self._cuda.download(tensor.staged, tensor.address)

    def _foreign_array(self, spec: TensorSpec, value: Any) -> DeviceArray:
        """An input that lies in device memory already. Raises `ValueError` when the engine cannot read it there."""
        array = device_array(value, self._cuda.stream)
        wanted = self._graph.dtypes[spec.name]
        if array.dtype != wanted or array.address % ALIGNMENT:
            raise ValueError(
                f"{spec.name} is a device array of {array.dtype} at {array.address:#x}: it must be {wanted}, at a "
                f"multiple of {ALIGNMENT} bytes"
            )
        return array

    def _placed(self, arrays: Mapping[str, np.ndarray]) -> dict[str, _Tensor]:
        """A place on the device for each array, in one piece of memory, and what it is copied through."""
        dtypes, offsets, total = self._graph.dtypes, {}, 0
        for name, array in arrays.items():
            offsets[name] = total
            total += aligned(array.size * dtypes[name].itemsize)
        self._memory = self._cuda.allocate(total, f"inputs and outputs of the {self._graph.spec.name}")
        return {
            name: _Tensor(array, self._staging(array, dtypes[name]), self._memory.address + offsets[name])
            for name, array in arrays.items()
        }

    def _staging(self, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
        if self._repeated:
            return self._cuda.pinned(array.shape, dtype)
        return array if array.dtype == dtype else np.empty(array.shape, dtype)


class _AppendingRun(_Run):
    """A language model that reads the cache [C, B, Hk, d] and gives the new tokens [T, B, Hk, d]."""

    def __init__(
        self, cuda: Cuda, graph: CompiledGraph, inputs: Mapping[str, Any], outputs: Mapping[str, Any],
        constant: Collection[str],
    ) -> None:
        super().__init__(cuda, graph, inputs, outputs, constant)
        self._capture = False  # shapes change with every run
        self._lengths, self._tokens = inputs["cache_length"], inputs["input_ids"].shape[1]
        self._cache = next(iter(self._past.values()))
        # What an engine reads of an empty cache: it must hold numbers, and not be where the engine writes.
        self._empty = cuda.allocate(aligned(self._cache.slot_bytes), "a slot of the cache")
        cuda.zero(self._empty)
        self._new: DeviceMemory | None = None

    def _launch(self) -> None:
        used = int(self._lengths.max())
        slots = max(1, used)
        straight = used == int(self._lengths.min()) and self._cache.slot_bytes % ALIGNMENT == 0
        past = {name: buffer.address if used else self._empty.address for name, buffer in self._past.items()}
        shapes = {name: (slots, *buffer.shape[1:]) for name, buffer in self._past.items()}
        self._profile.use(self._use, {**self._shapes, **shapes})
        present = self._slots(used) if straight else self._beside()
        self._profile.bind({**self._addresses, **past, **present})
        self._enqueue()
        if not straight:
            self._scatter(present)

    def _slots(self, used: int) -> Addresses:
        """Where the new tokens belong, when all rows have as many."""
        return {name: buffer.address + used * buffer.slot_bytes for name, buffer in self._present.items()}

    def _beside(self) -> Addresses:
        """Room for the new tokens, to be moved from there."""
        size = aligned(self._tokens * self._cache.slot_bytes)
        if self._new is None:
            self._new = self._cuda.allocate(size * len(self._present), "new tokens of all layers")
        return {name: self._new.address + index * size for index, name in enumerate(self._present)}

    def _scatter(self, addresses: Addresses) -> None:
        """Move each row's new tokens behind its cached ones."""
        for name, buffer in self._present.items():
            _, rows, heads, width = buffer.shape
            piece = heads * width * buffer.dtype.itemsize
            for row, start in enumerate(self._lengths.tolist()):
                target = buffer.pieces(row, slice(start, start + self._tokens))
                self._cuda.copy_rows(
                    target.address, target.pitch, addresses[name] + row * piece, rows * piece, piece, self._tokens
                )


def _check_array(graph: CompiledGraph, spec: TensorSpec, array: Any) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != spec.array_dtype or not array.flags.c_contiguous:
        raise ValueError(f"{graph.spec.name}: {spec.name} must be a C-contiguous {spec.array_dtype} array")
