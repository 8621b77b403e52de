"""Bundles on TensorRT and TensorRT-RTX: the engines that ``flamingo-rt build`` made, their buffers in device memory.

- The cache stays on the device. In the lowering ``tensorrt`` past and present of a layer are one buffer, which the
  engine writes in place: a step is a `BoundEngine`, replayed as a CUDA graph. In ``tensorrt-classic`` the engine
  returns the new tokens, and `ClassicLanguageModel` puts them into the cache.
- Inputs that never change between steps (media, their index) are uploaded once.
- A greedy step takes the graph's own choice: it reads the tokens of the previous step from device memory, uploads the
  lengths, downloads its tokens and their log-probabilities, and begins before the host has seen the previous ones
  (`async_greedy.py`).
- For sampling, penalties, beams and guessed tokens the host chooses: such a step uploads its token ids and lengths,
  downloads its logits (50k of them are 200 kB a row), and ends with one wait for the stream.
"""

from __future__ import annotations

from flamingo_rt.bundle import Bundle
from flamingo_rt.contract import APPENDED, CACHE_FORMS, LANGUAGE_MODEL, graph_specs
from flamingo_rt.engines.gpu.bound_arrays import BoundArrays, BoundGraph
from flamingo_rt.engines.gpu.cache_pool import CachePool, PooledCache
from flamingo_rt.engines.gpu.cuda import Cuda
from flamingo_rt.engines.gpu.device_cache import CacheLayout
from flamingo_rt.engines.gpu.gpu_backend import GpuBackend
from flamingo_rt.engines.tensorrt.bound_engine import BoundEngine
from flamingo_rt.engines.tensorrt.callbacks import Caught, make_log
from flamingo_rt.engines.tensorrt.classic_language_model import ClassicLanguageModel
from flamingo_rt.engines.tensorrt.engine_files import EngineFolder, build_command
from flamingo_rt.engines.tensorrt.tensorrt_session import Loader
from flamingo_rt.engines.tensorrt.versions import TensorRT
from flamingo_rt.errors import DataError

NAME = "tensorrt"


class TensorRtBackend(GpuBackend):
    """The three graphs as TensorRT engines on one GPU."""

    name = NAME
    continues_batches = True

    def __init__(
        self, bundle: Bundle, engines: EngineFolder, tensorrt: TensorRT, cuda_graphs: bool = True
    ) -> None:
        """Load the ``engines`` of a bundle, verified by `read_engines`. Without ``cuda_graphs`` no step is captured.

        Raises `DependencyError` without a GPU or a library to call its driver through, `DataError` when an engine
        cannot be loaded or belongs to another model.
        """
        cuda, form = Cuda(), CACHE_FORMS[engines.lowering]
        own_specs = graph_specs(bundle.config, engines.compute, form)
        log = make_log(tensorrt.module, Caught())
        rebuild = build_command(bundle.path, engines.target, engines)
        with cuda.current():
            runtime = tensorrt.module.Runtime(log)
            if engines.options.version_compatible:
                # Such an engine brings the code that runs it; `read_engines` has checked that the user allows that.
                runtime.engine_host_code_allowed = True
            loader = Loader(tensorrt.module, runtime, log, cuda, rebuild)
            stripped = engines.options.weight_stripped
            self._sessions = {
                name: loader.load(engines.engine_path(name), spec, bundle.graph_path(name) if stripped else None)
                for name, spec in own_specs.items()
            }
        super().__init__(
            cuda, graph_specs(bundle.config, engines.compute),
            {name: session.interface for name, session in self._sessions.items()},
            CachePool(cuda, CacheLayout(own_specs[LANGUAGE_MODEL], "flamingo-rt build --capacity, or use fewer shots")),
            tensorrt,
        )
        self._appended, self.limits, self._cuda_graphs = form == APPENDED, engines.limits, cuda_graphs
        self.description = f"{tensorrt.title}, {engines.path.name}"

    def cache(self, rows: int, capacity: int) -> PooledCache:
        """See `GpuBackend.cache`. An engine that writes the cache in place takes one capacity alone, which is allocated
        whatever is asked for."""
        session = self._sessions[LANGUAGE_MODEL]
        past = next(spec for spec in session.spec.inputs if "C" in spec.shape)
        smallest, largest = session.range(past.name, past.shape.index("C"))
        if capacity > largest:
            raise DataError(
                f"{capacity:,} tokens are asked for, {session.path} holds {largest:,}: use fewer shots or a smaller "
                "max_new_tokens, or build it for more (flamingo-rt build --capacity)"
            )
        return self._pool.open(rows, max(smallest, capacity))

    def _bind_graph(self, arrays: BoundArrays) -> BoundGraph:
        graph = arrays.interface.spec.name
        profile = self._sessions[graph].profile(arrays.shapes, arrays.repeated, self._pool)
        if self._appended and graph == LANGUAGE_MODEL:
            return ClassicLanguageModel(self._cuda, profile, arrays, self._pool.allocate)
        return BoundEngine(self._cuda, profile, arrays, self._cuda_graphs)
