"""Bundles on TensorRT and TensorRT-RTX: the engines that ``flamingo-rt build`` made, their buffers in device memory.

- The cache stays on the device. Of the lowering ``tensorrt`` it is one buffer, past and present at once, that the
  engine writes in place. Of ``tensorrt-classic`` the engine reads what is cached and gives the new tokens alone: rows
  of one length have them written straight to their slots, for others they are moved there.
- What never changes between steps (media, their index) is uploaded once. A step uploads its token ids and lengths and
  downloads its logits through pinned memory, and is replayed as a CUDA graph: on the first run its shapes are set, on
  the second it is captured. A classic engine's shapes change with every token, so its steps are not captured.
- Greedy rows take the graph's own choice: a step reads the tokens of the one before from device memory, and begins
  before the host has seen them (`device_steps.py`). Sampling, penalties and beams choose on the host, from the logits
  in pinned memory (50k of them are 200 kB a row), so such a step ends with one wait for the stream.

Not run on a GPU so far: the tests run it against a stand-in for TensorRT and PyCUDA that computes with ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from flamingo_rt.bundle import Bundle
from flamingo_rt.contract import APPENDED, CACHE_FORMS, CACHE_LENGTH, INPUT_IDS, LANGUAGE_MODEL, graph_specs
from flamingo_rt.engines.gpu.cache_pool import Buffers
from flamingo_rt.engines.gpu.cuda import ALIGNMENT, Cuda, DeviceMemory, Graph, aligned
from flamingo_rt.engines.gpu.device_cache import DeviceCache
from flamingo_rt.engines.gpu.device_run import Addresses, BoundGraph, DeviceRun
from flamingo_rt.engines.gpu.gpu_backend import GpuBackend
from flamingo_rt.engines.tensorrt.callbacks import Caught, make_log
from flamingo_rt.engines.tensorrt.engine_files import EngineFolder, build_command
from flamingo_rt.engines.tensorrt.tensorrt_session import Loader, Profile, TensorRtSession
from flamingo_rt.engines.tensorrt.versions import TensorRT
from flamingo_rt.errors import DataError

NAME = "tensorrt"


class TensorRtBackend(GpuBackend):
    """The three graphs as TensorRT engines on one GPU."""

    name = NAME
    continues_batches = True

    def __init__(self, bundle: Bundle, engines: EngineFolder, tensorrt: TensorRT) -> None:
        """Load the ``engines`` of a bundle, as `read_engines` gave them.

        Raises `DependencyError` without PyCUDA or a GPU, `DataError` when an engine cannot be loaded or is none of this
        model's.
        """
        super().__init__(Cuda(), graph_specs(bundle.config, engines.compute))
        self._tensorrt, self._form = tensorrt, CACHE_FORMS[engines.lowering]
        self.limits = engines.limits
        self.description = f"{tensorrt.title}, {engines.path.name}"
        log = make_log(tensorrt.module, Caught())
        rebuild = build_command(bundle.path, engines.target, engines)
        with self._cuda.current():
            runtime = tensorrt.module.Runtime(log)
            if engines.options.version_compatible:
                # Such an engine brings the code that runs it; `read_engines` has seen to it that the user wants that.
                runtime.engine_host_code_allowed = True
            loader = Loader(tensorrt.module, runtime, log, self._cuda, rebuild)
            stripped = engines.options.weight_stripped
            self._graphs = {
                name: loader.load(engines.engine_path(name), spec, bundle.graph_path(name) if stripped else None)
                for name, spec in graph_specs(bundle.config, engines.compute, self._form).items()
            }

    def _capacity_for(self, capacity: int) -> int:
        """An engine that writes in place takes one capacity alone, so all of it is there whatever is asked for."""
        graph = self._graphs[LANGUAGE_MODEL]
        past = next(spec for spec in graph.spec.inputs if "C" in spec.shape)
        least, most = graph.range(past.name, past.shape.index("C"))
        if capacity > most:
            raise DataError(
                f"{capacity:,} tokens are asked for, {graph.path} holds {most:,}: use fewer shots or a smaller "
                "max_new_tokens, or build it for more (flamingo-rt build --capacity)"
            )
        return max(least, capacity)

    def _cache(self, rows: int, capacity: int, buffers: Buffers | None) -> DeviceCache:
        return DeviceCache(
            self._cuda, self._graphs[LANGUAGE_MODEL].spec, self._form, rows, capacity,
            "flamingo-rt build --capacity, or use fewer shots", buffers,
        )

    def _bound(
        self, graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], constant: Collection[str]
    ) -> DeviceRun:
        kind = _AppendingRun if self._form == APPENDED and graph == LANGUAGE_MODEL else _Run
        return kind(self._cuda, self._graphs[graph], inputs, outputs, constant)


class _Run(DeviceRun):
    """One graph, bound, with the execution context for its sizes."""

    def __init__(
        self, cuda: Cuda, graph: TensorRtSession, inputs: Mapping[str, Any], outputs: Mapping[str, Any],
        constant: Collection[str],
    ) -> None:
        super().__init__(cuda, BoundGraph(graph.spec, graph.dtypes), inputs, outputs, constant)
        self._graph = graph
        self._use = object()  # a profile keeps what was last set up: not this, which would keep the cache
        self._profile: Profile = graph.profile(self._shapes, self._repeated)
        self._captured: Graph | None = None
        self._capture = self._repeated  # what is run once gains nothing by it

    def launch(self) -> None:
        """As `DeviceRun.launch`, as a CUDA graph from the second time on."""
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
        self._profile.bind({**self._addresses, **self._cache_addresses()})

    def _try_to_capture(self) -> Graph | None:
        """A graph of one run, or None where it cannot be captured: what cannot, is run as it is from then on."""
        try:
            captured = self._cuda.capture(self._enqueue)
        except (RuntimeError, DataError):
            captured = None
        self._capture = captured is not None
        return captured

    def _run(self) -> None:
        self._profile.run(self._cuda.stream)


class _AppendingRun(_Run):
    """A language model that reads the cache [C, B, Hk, d] and gives the new tokens [T, B, Hk, d]."""

    def __init__(
        self, cuda: Cuda, graph: TensorRtSession, inputs: Mapping[str, Any], outputs: Mapping[str, Any],
        constant: Collection[str],
    ) -> None:
        super().__init__(cuda, graph, inputs, outputs, constant)
        self._capture = False  # shapes change with every run
        self._lengths, self._tokens = inputs[CACHE_LENGTH], inputs[INPUT_IDS].shape[1]
        self._cache = next(iter(self._past.values()))
        # What an engine reads of an empty cache: it must hold numbers, and not be where the engine writes.
        self._empty = cuda.allocate(aligned(self._cache.slot_bytes), "a slot of the cache")
        cuda.zero(self._empty)
        self._new: DeviceMemory | None = None

    def launch(self) -> None:
        """As `DeviceRun.launch`, with the shapes and addresses of this step."""
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
