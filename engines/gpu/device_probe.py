"""A GPU's memory bandwidth and rate of matrix products, the ceilings that ``flamingo-rt bench`` compares engines with.

Bandwidth is measured by copies within the device, each byte read and written; products by a network of one MatMul,
compiled on the spot, in the type that the engines compute in. Both run on the engines' own stream and are timed by the
device's clock.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flamingo_rt.engines.gpu.cuda import Allocate, Cuda, DeviceMemory
from flamingo_rt.engines.matmul_graph import matmul_graph
from flamingo_rt.engines.tensorrt.callbacks import Caught, make_log
from flamingo_rt.engines.tensorrt.versions import TensorRT
from flamingo_rt.errors import DataError

COPY_BYTES = 256 << 20  # far more than a GPU's cache holds
SIZE = 4096  # rows and columns of the matrices: enough work for the largest GPUs, and 100 MB in half precision
REPEATS = 8  # copies or products in one measurement
ROUNDS = 3  # measurements, of which the fastest counts
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class DeviceProbe:
    """Measures a GPU; the matrix product is compiled when its ``with`` block is entered."""

    def __init__(
        self, cuda: Cuda, tensorrt: TensorRT | None, dtype: str, allocate: Allocate | None = None
    ) -> None:
        """``dtype`` is the type that the engines compute in. Without ``tensorrt`` products are not measured. Memory
        comes from ``allocate``, by default `Cuda.allocate`."""
        self._cuda, self._tensorrt, self._dtype = cuda, tensorrt, dtype
        self._allocate = allocate or cuda.allocate
        self._product: _Product | None = None
        self._missing = "not measured: this backend has no product of its own to measure"

    def __enter__(self) -> DeviceProbe:
        if self._tensorrt is None:
            return self
        try:
            with self._cuda.current():
                self._product = _Product(self._cuda, self._tensorrt, self._dtype, self._allocate)
        except DataError as error:  # the model is measured all the same
            self._missing = f"not measured: {error}"
        return self

    def __exit__(self, *exception: object) -> None:
        self._product = None

    def bandwidth(self) -> tuple[float, str]:
        """Bytes read and written per second, and how they were measured. Raises `DataError` when there is too little
        device memory."""
        cuda = self._cuda
        with cuda.current():
            target, source = (self._allocate(COPY_BYTES, "measuring the GPU's memory") for _ in range(2))
            cuda.zero(source)

            def copies() -> None:
                for _ in range(REPEATS):
                    cuda.copy(target.address, source.address, COPY_BYTES)

            seconds = min(cuda.seconds(copies) for _ in range(ROUNDS))
        how = f"copies of {COPY_BYTES / 1e6:.0f} MB within {cuda.device_name}, read and written"
        return 2 * COPY_BYTES * REPEATS / seconds, how

    def products(self) -> tuple[float | None, str]:
        """FLOPs per second, and the library that computed them; None and the reason where TensorRT compiled no product.
        """
        if self._product is None or self._tensorrt is None:
            return None, self._missing
        with self._cuda.current():
            seconds = min(self._cuda.seconds(self._product.enqueue) for _ in range(ROUNDS))
        return 2 * SIZE**3 * REPEATS / seconds, f"MatMul of {self._tensorrt.title}, {SIZE}³, {self._dtype}"


class _Product:
    """A product of two random matrices, computed by TensorRT."""

    def __init__(self, cuda: Cuda, tensorrt: TensorRT, dtype: str, allocate: Allocate) -> None:
        """Raises `DataError` when TensorRT does not compile or load it, or there is too little device memory."""
        log = make_log(tensorrt.module, Caught())
        self._cuda, self._runtime, self._log, self._title = cuda, tensorrt.module.Runtime(log), log, tensorrt.title
        self._engine = self._runtime.deserialize_cuda_engine(compiled_product(tensorrt, dtype, log))
        context = self._engine.create_execution_context() if self._engine is not None else None
        if context is None:
            raise DataError(f"{tensorrt.title} cannot load a product that it compiled ({'; '.join(log.errors)})")
        self._context: Any = context
        self._memory: dict[str, DeviceMemory] = {}
        numbers = np.random.default_rng(0).standard_normal((SIZE, SIZE), dtype=np.float32)
        for name in ("x", "w", "y"):
            memory = allocate(SIZE * SIZE * ITEM_BYTES[dtype], "measuring the GPU's matrix products")
            if name != "y":  # random numbers: zeros would take less power, and be faster
                cuda.upload(memory.address, _as_dtype(numbers, dtype))
            if not self._context.set_tensor_address(name, memory.address):
                raise self._failure()
            self._memory[name] = memory
        cuda.synchronize()

    def enqueue(self) -> None:
        """Put `REPEATS` products on the stream."""
        for _ in range(REPEATS):
            if not self._context.execute_async_v3(self._cuda.stream):
                raise self._failure()

    def _failure(self) -> DataError:
        said = "; ".join(self._log.errors) or "it says nothing about it"
        return DataError(f"{self._title} cannot run a product that it compiled ({said})")


def compiled_product(tensorrt: TensorRT, dtype: str, log: Any, capability: str | None = None) -> Any:
    """The serialized engine of y = x @ w in ``dtype``, for this machine's GPU, or ahead of time for a compute
    ``capability`` such as ``86``. Raises `DataError` with TensorRT's errors when it does not compile."""
    module = tensorrt.module
    try:
        builder = module.Builder(log)
        network = builder.create_network(tensorrt.network_flags())
        parser = module.OnnxParser(network, log)
        parsed, config = parser.parse(matmul_graph(SIZE, dtype)), builder.create_builder_config()
        if capability is not None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(tensorrt.capabilities()[capability], 0)
        tensorrt.choose_types(config, dtype)
        engine = builder.build_serialized_network(network, config) if parsed else None
    except TypeError as error:  # pybind11's: a factory gave nothing
        log.errors.append(str(error))
        engine = None
    if engine is None:
        raise DataError(f"{tensorrt.title} cannot compile a product of {dtype} ({'; '.join(log.errors)})")
    return engine


def _as_dtype(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """The bits of float32 numbers in another type; numpy has no bfloat16, whose bits are the upper half."""
    if dtype == "bfloat16":
        return (numbers.view(np.uint32) >> 16).astype(np.uint16)
    return numbers.astype(dtype)
