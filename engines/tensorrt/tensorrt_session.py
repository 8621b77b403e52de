"""One graph in TensorRT: a deserialized engine, and an execution context for each of its optimization profiles.

Tensors are named, not numbered: the interface that TensorRT 8.5 to 11 and TensorRT-RTX have in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_rt.contract import GraphSpec, TensorSpec
from flamingo_rt.engines.gpu.bound_arrays import GraphInterface
from flamingo_rt.engines.gpu.cache_pool import CachePool
from flamingo_rt.engines.gpu.cuda import ALIGNMENT, Cuda
from flamingo_rt.errors import DataError
from flamingo_rt.graph_files import read_graph

# Engine types accepted for a type of the contract: TensorRT before 10 has 32-bit integers only.
ACCEPTED = {"int64": ("INT64", "INT32"), "float32": ("FLOAT",), "float16": ("HALF",), "bfloat16": ("BF16",)}
ARRAY_DTYPES = {"INT64": "int64", "INT32": "int32", "FLOAT": "float32", "HALF": "float16", "BF16": "uint16"}

Shapes = Mapping[str, tuple[int, ...]]


class Profile:
    """An execution context for the sizes of one optimization profile. It is set up, by shapes and addresses, for one
    ``user`` at a time, who enters itself when that is done; setting shapes removes it."""

    def __init__(self, session: TensorRtSession, index: int) -> None:
        self._session, self._index = session, index
        self._context: Any = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.user: object = None

    def misfit(self, shapes: Shapes) -> str | None:
        """Text about the first input whose shape this profile does not take; None when it takes all."""
        for name, shape in shapes.items():
            bounds = self._session.engine.get_tensor_profile_shape(name, self._index)
            smallest, _, largest = (tuple(dims) for dims in bounds)
            if not all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)):
                return f"{name} is {list(shape)}, from {list(smallest)} to {list(largest)} was compiled"
        return None

    def prepare(self, pool: CachePool) -> None:
        """Make the execution context, if there is none yet. Raises `DataError` when there is too little device memory
        even after ``pool`` has freed what nobody uses."""
        if self._context is None:
            self._context = self._session.new_context(self._index, pool)

    def set_shapes(self, shapes: Shapes) -> None:
        """Set the input shapes for the next runs. Raises `DataError` for those that TensorRT refuses."""
        self.user = None
        for name, shape in shapes.items():
            if self._shapes.get(name) == shape:
                continue
            if not self._context.set_input_shape(name, shape):
                raise self._session.failure(f"refuses {name} as {list(shape)}")
            self._shapes[name] = shape

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Set the addresses of inputs and outputs for the next runs, multiples of `ALIGNMENT`."""
        for name, address in addresses.items():
            if address % ALIGNMENT:
                raise ValueError(f"{name}: address {address:#x} is no multiple of {ALIGNMENT}")
            if not self._context.set_tensor_address(name, address):
                raise self._session.failure(f"refuses the address of {name}")

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an output, for the input shapes that were set."""
        return tuple(self._context.get_tensor_shape(name))

    def enqueue(self, stream: int) -> None:
        """Put one run on the stream. Raises `DataError` when TensorRT refuses it."""
        if not self._context.execute_async_v3(stream):
            raise self._session.failure("could not be run")

    def capturable(self, stream: int) -> bool:
        """Whether a run can be captured as a CUDA graph. TensorRT-RTX says so; where the runtime does not, True."""
        asked = getattr(self._context, "is_stream_capturable", None)
        return asked is None or bool(asked(stream))

    def failure(self, what: str) -> DataError:
        """See `TensorRtSession.failure`."""
        return self._session.failure(what)


class TensorRtSession:
    """An engine and its profiles, in the order of the contract's `size_ranges`: of several, steps take the last."""

    def __init__(self, engine: Any, loader: Loader, path: Path, spec: GraphSpec) -> None:
        """Raises `DataError` when the engine's interface is not ``spec``."""
        self.engine, self.path, self.spec, self._loader = engine, path, spec, loader
        self.dtypes = self._checked_dtypes()
        self.profiles = [Profile(self, index) for index in range(engine.num_optimization_profiles)]

    @property
    def interface(self) -> GraphInterface:
        """The graph's tensors; none is read in host memory."""
        return GraphInterface(self.spec, self.dtypes)

    def profile(self, shapes: Shapes, repeated: bool, pool: CachePool) -> Profile:
        """A profile that takes inputs of these shapes, with its execution context. For ``repeated`` runs it is the last
        that does, which is for fewer sizes; for a single run the first, so that the other stays set up for steps.

        Raises `DataError` when no profile takes them, or there is too little device memory.
        """
        for profile in reversed(self.profiles) if repeated else self.profiles:
            if profile.misfit(shapes) is None:
                profile.prepare(pool)
                return profile
        misfit = self.profiles[0].misfit(shapes)  # the one for more sizes
        raise DataError(
            f"{self.path} was compiled for other sizes: {misfit}; ask for less, or build it for more: "
            f"{self._loader.rebuild}"
        )

    def range(self, name: str, axis: int) -> tuple[int, int]:
        """The smallest and largest size of an input's axis, over all profiles."""
        shapes = [self.engine.get_tensor_profile_shape(name, index) for index in range(len(self.profiles))]
        return min(tuple(dims[0])[axis] for dims in shapes), max(tuple(dims[2])[axis] for dims in shapes)

    def new_context(self, profile: int, pool: CachePool) -> Any:
        """A new execution context, made again without the unused cache if there is too little device memory. Raises
        `DataError` when there is too little even then."""
        cuda = self._loader.cuda
        context = self.engine.create_execution_context()
        if context is None and pool.free_unused():  # TensorRT allocates it, and does not say why it fails
            context = self.engine.create_execution_context()
        if context is None:
            raise self.failure("gets no execution context, most likely because device memory is short")
        if not context.set_optimization_profile_async(profile, cuda.stream):
            raise self.failure(f"refuses its optimization profile {profile}")
        cuda.synchronize()
        return context

    def failure(self, what: str) -> DataError:
        """An error about this engine, with the errors that TensorRT has logged."""
        return self._loader.failure(self.path, what)

    def _checked_dtypes(self) -> dict[str, np.dtype]:
        """Types of arrays for the engine's inputs and outputs, which must be those of ``spec`` and no others."""
        engine, module = self.engine, self._loader.module
        found = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        expected = {tensor.name for tensor in (*self.spec.inputs, *self.spec.outputs)}
        if found != expected:
            raise self._misfit(f"tensors {sorted(found ^ expected)} are missing or not known")
        modes = {module.TensorIOMode.INPUT: self.spec.inputs, module.TensorIOMode.OUTPUT: self.spec.outputs}
        dtypes = {}
        for mode, tensors in modes.items():
            for tensor in tensors:
                dtype = _name(engine.get_tensor_dtype(tensor.name))
                if engine.get_tensor_mode(tensor.name) != mode or dtype not in ACCEPTED[tensor.dtype]:
                    raise self._misfit(f"{tensor.name} is {dtype}, {_name(mode).lower()} {tensor.dtype} was expected")
                self._check_shape(tensor)
                if engine.get_tensor_location(tensor.name) != module.TensorLocation.DEVICE:
                    raise self._misfit(f"{tensor.name} is wanted in host memory")
                dtypes[tensor.name] = np.dtype(ARRAY_DTYPES[dtype])
        return dtypes

    def _check_shape(self, tensor: TensorSpec) -> None:
        """Raise `DataError` unless the engine has every fixed size of the contract; a letter may be any size (-1)."""
        shape = tuple(self.engine.get_tensor_shape(tensor.name))
        fits = len(shape) == len(tensor.shape) and all(
            isinstance(wanted, str) or wanted == size for wanted, size in zip(tensor.shape, shape, strict=True)
        )
        if not fits:
            raise self._misfit(f"{tensor.name} is {list(shape)}, {list(tensor.shape)} was expected")

    def _misfit(self, what: str) -> DataError:
        return DataError(f"{self.path} does not fit the configuration: {what}; build it again: {self._loader.rebuild}")


@dataclass(frozen=True)
class Loader:
    """Loads engines with one module of TensorRT, its ``Runtime`` and the ``log`` that it was made with. ``rebuild`` is
    the command that builds the engines again."""

    module: Any
    runtime: Any
    log: Any
    cuda: Cuda
    rebuild: str

    def load(self, path: Path, spec: GraphSpec, weights: Path | None = None) -> TensorRtSession:
        """Read an engine. One that was built without weights takes those of the graph ``weights``. Raises `DataError`
        when it cannot be loaded."""
        engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise self.failure(path, "cannot be loaded")
        if weights is not None:
            refitter = self.module.Refitter(engine, self.log)
            graph = read_graph(weights)
            parsed = self.module.OnnxParserRefitter(refitter, self.log).refit_from_bytes(graph.model, graph.beside)
            if not parsed or not refitter.refit_cuda_engine():
                raise self.failure(path, f"does not take the weights of {weights}")
        return TensorRtSession(engine, self, path, spec)

    def failure(self, path: Path, what: str) -> DataError:
        """An error about the engine ``path``, with the errors that TensorRT has logged, which are cleared."""
        said = "; ".join(self.log.errors) or "TensorRT says nothing about it"
        self.log.errors.clear()
        return DataError(f"the engine {path} {what} ({said}); build it again: {self.rebuild}")


def _name(value: Any) -> str:
    """The name of a member of an enumeration: HALF for ``DataType.HALF``."""
    return str(value).rpartition(".")[2]
