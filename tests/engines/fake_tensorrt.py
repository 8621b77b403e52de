"""A stand-in for TensorRT, on that for CUDA: an "engine" is a file that names an ONNX graph, which ONNX Runtime
computes, so that tokens can be compared.

It is strict about what it can see: a run needs the shape of every input and the address of every tensor, aligned,
within its optimization profile. It cannot show whether TensorRT takes these graphs and computes them right, nor the
real library's names and arguments, which were read in its documentation.
"""

from __future__ import annotations

import json
import sys
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
from fake_gpu import ALIGNMENT, FakeGpu, cuda_bindings_driver, pycuda_driver

from flamingo_rt.engines.gpu import device_probe

DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "uint16", "INT32": "int32", "INT64": "int64"}


class FakeEngine:
    """``ICudaEngine``: ``tensors`` [name, mode, type, shape with -1], ``profiles`` name -> [min, opt, max]."""

    def __init__(self, module, gpu: FakeGpu, described: dict, compute) -> None:
        self._module, self._gpu, self._compute = module, gpu, compute
        self.tensors = {name: (mode, dtype, tuple(shape)) for name, mode, dtype, shape in described["tensors"]}
        self._profiles = described["profiles"]
        self.num_io_tensors, self.num_optimization_profiles = len(self.tensors), len(self._profiles)
        self.graph = described["graph"]

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str):
        return self._module.TensorIOMode[self.tensors[name][0]]

    def get_tensor_dtype(self, name: str):
        return self._module.DataType[self.tensors[name][1]]

    def get_tensor_shape(self, name: str) -> tuple:
        return self.tensors[name][2]

    def get_tensor_location(self, name: str):
        return self._module.TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple]:
        assert self.tensors[name][0] == "INPUT"
        return [tuple(shape) for shape in self._profiles[profile][name]]

    def create_execution_context(self) -> FakeContext:
        assert self._gpu.current == 1
        return FakeContext(self, self._gpu)


class FakeContext:
    """``IExecutionContext``."""

    def __init__(self, engine: FakeEngine, gpu: FakeGpu) -> None:
        self._engine, self._gpu = engine, gpu
        self._profile: int | None = None
        self._shapes: dict[str, tuple] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream == 7
        self._profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple) -> bool:
        assert self._gpu.capturing is None
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
        assert isinstance(shape, tuple)
        assert len(shape) == len(least)
        self._gpu.calls.append(("shape", name, shape))
        self._shapes[name] = shape
        return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name in self._engine.tensors
        assert address
        assert address % ALIGNMENT == 0
        self._addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple:
        sizes = self._engine._compute.sizes(self._shapes)
        return self._engine._compute.shape(name, sizes)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        inputs = [
            name for name, (mode, _, shape) in self._engine.tensors.items() if mode == "INPUT" and -1 in shape
        ]
        assert set(self._shapes) == set(inputs), f"no shape: {set(inputs) - set(self._shapes)}"
        assert set(self._addresses) == set(self._engine.tensors), "no address"
        self._gpu.calls.append(("execute", self._engine.graph, self._profile))
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        dtypes = {name: DTYPES[dtype] for name, (_, dtype, _) in self._engine.tensors.items()}
        self._gpu.put(lambda: self._engine._compute(self._gpu, shapes, addresses, dtypes))
        return True


class OnnxCompute:
    """An engine's computation: a graph of the contract, by ONNX Runtime, on arrays at the addresses it is given."""

    def __init__(self, engine, spec) -> None:
        """``engine`` is an `OrtBackend` of the same graphs; its `_bind` takes arrays in their own form."""
        self._engine, self._spec = engine, spec

    def sizes(self, shapes: dict[str, tuple]) -> dict[str, int]:
        """The letters' sizes, which must be the same in all inputs."""
        sizes: dict[str, int] = {}
        for tensor in self._spec.inputs:
            for letter, size in zip(tensor.shape, shapes[tensor.name], strict=True):
                expected = sizes.setdefault(letter, size) if isinstance(letter, str) else letter
                assert size == expected, (tensor.name, shapes[tensor.name], sizes)
        return sizes

    def shape(self, name: str, sizes: dict[str, int]) -> tuple:
        return self._spec.output(name).resolve(sizes)

    def __call__(
        self, gpu: FakeGpu, shapes: dict[str, tuple], addresses: dict[str, int], dtypes: dict[str, str]
    ) -> None:
        sizes = self.sizes(shapes)
        arrays, views = {}, {}
        for tensor in (*self._spec.inputs, *self._spec.outputs):
            shape = tensor.resolve(sizes)
            dtype = np.dtype(dtypes[tensor.name])
            view = gpu.bytes_at(addresses[tensor.name], int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)
            assert not np.issubdtype(view.dtype, np.floating) or tensor.name not in shapes or np.isfinite(view).all(), (
                f"{tensor.name} holds NaN"
            )
            views[tensor.name], arrays[tensor.name] = view, view.astype(tensor.array_dtype, copy=False)
        names = [tensor.name for tensor in self._spec.outputs]
        for tensor in self._spec.outputs:
            past = tensor.name.replace("present", "past_key_values")
            assert "C" not in tensor.shape or addresses[past] == addresses[tensor.name], "a cache that is not in place"
        for name in names:
            for other, array in arrays.items():
                if other != name and np.shares_memory(arrays[name], array):
                    assert name.replace("present", "past_key_values") == other, f"{name} is written over {other}"
                    assert array.shape == arrays[name].shape, f"{name} and {other} overlap"
        self._engine._bind(self._spec.name, arrays, {name: arrays[name] for name in names})()
        for name in names:
            if arrays[name] is not views[name]:  # integers of 32 bits
                views[name][...] = arrays[name]


def multiply(gpu: FakeGpu, shapes: dict, addresses: dict[str, int], dtypes: dict[str, str]) -> None:
    """The product of two float32 or float16 matrices of `device_probe.SIZE`."""
    size, dtype = device_probe.SIZE, np.dtype(dtypes["y"])
    x, w, y = (
        gpu.bytes_at(addresses[name], size * size * dtype.itemsize).view(dtype).reshape(size, size) for name in "xwy"
    )
    assert np.isfinite(x).all()
    assert np.isfinite(w).all()
    y[:] = x @ w


def tensorrt_module(gpu: FakeGpu, computes: dict[str, OnnxCompute], version: str = "10.15.1") -> ModuleType:
    """``tensorrt``."""
    module = ModuleType("tensorrt")
    module.__version__ = version
    module.TensorIOMode = Enum("TensorIOMode", ["INPUT", "OUTPUT"])
    module.DataType = Enum("DataType", ["FLOAT", "HALF", "BF16", "INT32", "INT64"])
    module.TensorLocation = Enum("TensorLocation", ["DEVICE", "HOST"])
    module.ILogger = type("ILogger", (), {"ERROR": 1, "__init__": lambda self: None})

    class Runtime:
        def __init__(self, log) -> None:
            self.log = log
            assert gpu.current == 1

        def deserialize_cuda_engine(self, content: bytes) -> FakeEngine | None:
            try:
                described = json.loads(content)
            except ValueError:
                self.log.log(1, "no magic tag")
                return None
            return FakeEngine(module, gpu, described, computes.get(described["graph"], multiply))

    module.Runtime = Runtime
    add_builder(module)
    return module


def add_builder(module: ModuleType) -> None:
    """Add the compiler of a graph without free sizes: its engine names its tensors and is called ``product``."""

    class Network:
        content = b""

    class OnnxParser:
        def __init__(self, network: Network, log) -> None:
            self._network = network

        def parse(self, content: bytes) -> bool:
            self._network.content = content
            return True

    class Builder:
        def __init__(self, log) -> None:
            """See the real one."""

        def create_network(self, flags: int) -> Network:
            return Network()

        def create_builder_config(self) -> SimpleNamespace:
            return SimpleNamespace(set_flag=lambda flag: None, clear_flag=lambda flag: None)

        def build_serialized_network(self, network: Network, config) -> bytes:
            import onnx

            kinds = onnx.TensorProto
            names = {kinds.FLOAT: "FLOAT", kinds.FLOAT16: "HALF", kinds.BFLOAT16: "BF16"}
            graph = onnx.load_from_string(network.content).graph
            tensors = [
                (value.name, mode, names[value.type.tensor_type.elem_type],
                 [dim.dim_value for dim in value.type.tensor_type.shape.dim])
                for mode, values in (("INPUT", graph.input), ("OUTPUT", graph.output)) for value in values
            ]
            return json.dumps({"graph": "product", "tensors": tensors, "profiles": [{}]}).encode()

    module.Builder, module.OnnxParser = Builder, OnnxParser
    module.BuilderFlag = SimpleNamespace(TF32="TF32", FP16="FP16")
    module.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1, EXPLICIT_BATCH=0)


def install(monkeypatch, gpu: FakeGpu, computes: dict[str, OnnxCompute], version: str = "10.15.1") -> None:
    """Let imports find the stand-ins."""
    driver, bindings = pycuda_driver(gpu), cuda_bindings_driver(gpu)
    modules = {
        "pycuda": SimpleNamespace(driver=driver), "pycuda.driver": driver,
        "cuda": ModuleType("cuda"), "cuda.bindings": SimpleNamespace(driver=bindings), "cuda.bindings.driver": bindings,
        "tensorrt": tensorrt_module(gpu, computes, version),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def write_engine(path: Path, graph: str, spec, cases: dict, fixed: dict[str, int], integers: str = "INT64") -> None:
    """The file of an engine with a contract's interface; ``cases`` are its ranges, ``fixed`` sizes compiled in."""
    types = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int64": integers}
    tensors = [
        (tensor.name, mode, types[tensor.dtype],
         [fixed.get(size, -1) if isinstance(size, str) else size for size in tensor.shape])
        for mode, group in (("INPUT", spec.inputs), ("OUTPUT", spec.outputs)) for tensor in group
    ]
    profiles = [
        {
            tensor.name: [
                tensor.resolve({letter: getattr(sizes, which) for letter, sizes in ranges.items()})
                for which in ("min", "opt", "max")
            ]
            for tensor in spec.inputs
        }
        for ranges in cases.values()
    ]
    path.write_text(json.dumps({"graph": graph, "tensors": tensors, "profiles": profiles}))
