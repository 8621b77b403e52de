"""A stand-in for PyCUDA, cuda-bindings and TensorRT, on the memory of the host.

It is strict about what it can see: memory that is read or written must be allocated and not freed, in size and in time;
copies and runs happen when the stream is waited for, so what is read too early is wrong; a run needs the shape of every
input and the address of every tensor, aligned, within its optimization profile; calls need the context to be current.
An "engine" is a file that names an ONNX graph, which ONNX Runtime computes, so that tokens can be compared.

It cannot show: speed; whether TensorRT takes these graphs and computes them right; what CUDA refuses to capture; races
between streams; the real libraries' names and arguments, which were read in their documentation.
"""

from __future__ import annotations

import ctypes
import json
import sys
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

ALIGNMENT = 256
DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "uint16", "INT32": "int32", "INT64": "int64"}


class FakeGpu:
    """The device: its memory, its one context, the work on its stream, and what was asked of it, in order."""

    def __init__(self, memory: int = 1 << 30) -> None:
        self.memory, self.used = memory, 0
        self.allocations: dict[int, int] = {}  # address -> bytes
        self.pinned: list[np.ndarray] = []
        self.current = 0
        self.queue: list = []
        self.capturing: list | None = None
        self.calls: list[tuple] = []
        self._kept: dict[int, np.ndarray] = {}
        self.capture_fails = False

    def called(self, name: str) -> list[tuple]:
        """The calls of a name."""
        return [call for call in self.calls if call[0] == name]

    def allocate(self, bytes: int) -> int:
        assert bytes > 0
        buffer = np.full(bytes + ALIGNMENT, 0xFF, dtype=np.uint8)  # NaN, as fresh memory may hold
        address = -(-buffer.ctypes.data // ALIGNMENT) * ALIGNMENT
        self.allocations[address] = bytes
        self.used += bytes
        self._kept[address] = buffer
        return address

    def free(self, address: int) -> None:
        assert not self.queue, "memory is freed while work waits that may use it"
        self.used -= self.allocations.pop(address)
        del self._kept[address]

    def bytes_at(self, address: int, count: int) -> np.ndarray:
        """A view of device memory, which must be there."""
        for start, size in self.allocations.items():
            if start <= address and address + count <= start + size:
                return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address))
        raise AssertionError(f"{count} bytes at {address:#x} are not allocated, or were freed")

    def put(self, work) -> None:
        """On the stream, or into the graph that is being captured."""
        assert self.current == 1, "no context is current, or several are"
        (self.queue if self.capturing is None else self.capturing).append(work)

    def synchronize(self) -> None:
        assert self.current == 1
        assert self.capturing is None, "a wait for the stream cannot be captured"
        work, self.queue = self.queue, []
        for each in work:
            each()

    def is_pinned(self, array: np.ndarray) -> bool:
        return any(np.shares_memory(array, pinned) for pinned in self.pinned)


def pycuda_driver(gpu: FakeGpu) -> ModuleType:
    """``pycuda.driver``."""
    driver = ModuleType("pycuda.driver")
    driver.Error = type("Error", (Exception,), {})
    driver.MemoryError = type("MemoryError", (driver.Error, MemoryError), {})

    class Context:
        def push(self) -> None:
            gpu.current += 1

        @staticmethod
        def pop() -> None:
            gpu.current -= 1

    class Device:
        count = staticmethod(lambda: 1)

        def __init__(self, index: int) -> None:
            assert index == 0

        def name(self) -> str:
            return "Fake"

        def retain_primary_context(self) -> Context:
            gpu.calls.append(("retain_primary_context",))
            return Context()

    class Allocation:
        def __init__(self, address: int) -> None:
            self._address = address

        def __int__(self) -> int:
            return self._address

        def __del__(self) -> None:
            gpu.free(self._address)

    class Stream:
        handle = 7

        def __init__(self) -> None:
            assert gpu.current == 1

        synchronize = staticmethod(gpu.synchronize)

    class Memcpy2D:
        def set_src_device(self, address: int) -> None:
            self.source = address

        def set_dst_device(self, address: int) -> None:
            self.target = address

        def __call__(self, stream: Stream) -> None:
            assert isinstance(stream, Stream)
            source, target, width, height = self.source, self.target, self.width_in_bytes, self.height
            pitches = (self.src_pitch, self.dst_pitch)
            assert min(pitches) >= width

            def work() -> None:
                for index in range(height):
                    piece = gpu.bytes_at(source + index * pitches[0], width)
                    gpu.bytes_at(target + index * pitches[1], width)[:] = piece

            gpu.put(work)

    def mem_alloc(bytes: int) -> Allocation:
        assert gpu.current == 1
        if gpu.used + bytes > gpu.memory:
            raise driver.MemoryError("cuMemAlloc failed: out of memory")
        return Allocation(gpu.allocate(bytes))

    def pagelocked_empty(shape, dtype) -> np.ndarray:
        gpu.pinned.append(np.empty(shape, dtype))
        return gpu.pinned[-1]

    def memcpy_htod_async(address: int, array: np.ndarray, stream: Stream) -> None:
        assert isinstance(stream, Stream)
        assert array.flags.c_contiguous
        held = array if gpu.is_pinned(array) else array.copy()  # pageable memory is read before the call returns
        assert gpu.capturing is None or held is array, "pageable memory in a graph"
        gpu.put(lambda: gpu.bytes_at(address, held.nbytes).__setitem__(slice(None), held.reshape(-1).view(np.uint8)))

    def memcpy_dtoh_async(array: np.ndarray, address: int, stream: Stream) -> None:
        assert isinstance(stream, Stream)
        assert array.flags.c_contiguous
        assert gpu.capturing is None or gpu.is_pinned(array), "pageable memory in a graph"
        gpu.put(lambda: array.reshape(-1).view(np.uint8).__setitem__(slice(None), gpu.bytes_at(address, array.nbytes)))

    def memset_d8_async(address: int, value: int, count: int, stream: Stream) -> None:
        assert isinstance(stream, Stream)
        gpu.put(lambda: gpu.bytes_at(address, count).fill(value))

    def copy_now(target, source) -> None:
        raise AssertionError("a copy that is not put on the stream")

    driver.memcpy_htod = driver.memcpy_dtoh = copy_now
    driver.init = lambda: None
    driver.Device, driver.Context, driver.Stream, driver.Memcpy2D = Device, Context, Stream, Memcpy2D
    driver.mem_alloc, driver.pagelocked_empty = mem_alloc, pagelocked_empty
    driver.mem_get_info = lambda: (gpu.memory - gpu.used, gpu.memory)
    driver.memcpy_htod_async, driver.memcpy_dtoh_async = memcpy_htod_async, memcpy_dtoh_async
    driver.memset_d8_async = memset_d8_async
    return driver


def cuda_bindings_driver(gpu: FakeGpu) -> ModuleType:
    """``cuda.bindings.driver``: every call returns a tuple that begins with its status."""
    bindings = ModuleType("cuda.bindings.driver")
    bindings.CUresult = Enum("CUresult", ["CUDA_SUCCESS", "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"])
    bindings.CUstreamCaptureMode = Enum("CUstreamCaptureMode", ["CU_STREAM_CAPTURE_MODE_RELAXED"])
    bindings.CUstream = int
    success = bindings.CUresult.CUDA_SUCCESS

    def begin(stream: int, mode) -> tuple:
        assert stream == 7
        assert gpu.capturing is None
        gpu.calls.append(("begin capture",))
        gpu.capturing = []
        return (success,)

    def end(stream: int) -> tuple:
        captured, gpu.capturing = gpu.capturing, None
        if gpu.capture_fails:
            return (bindings.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, None)
        return (success, captured)

    def launch(graph: list, stream: int) -> tuple:
        gpu.calls.append(("launch",))
        gpu.put(lambda: [work() for work in graph])
        return (success,)

    def wait(stream: int) -> tuple:
        gpu.calls.append(("wait for", stream))
        return (success,)

    bindings.cuStreamBeginCapture, bindings.cuStreamEndCapture, bindings.cuGraphLaunch = begin, end, launch
    bindings.cuGraphInstantiate = lambda graph, flags: (success, graph)
    bindings.cuGraphDestroy = bindings.cuGraphExecDestroy = lambda graph: (success,)
    bindings.cuStreamSynchronize = wait
    return bindings


class FakeEngine:
    """``ICudaEngine``: ``tensors`` [name, mode, type, shape with -1], ``profiles`` name -> [least, likely, most]."""

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
        inputs = [name for name, (mode, *_) in self._engine.tensors.items() if mode == "INPUT"]
        assert set(self._shapes) == set(inputs), f"no shape: {set(inputs) - set(self._shapes)}"
        assert set(self._addresses) == set(self._engine.tensors), "no address"
        self._gpu.calls.append(("execute", self._engine.graph, self._profile))
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        dtypes = {name: DTYPES[dtype] for name, (_, dtype, _) in self._engine.tensors.items()}
        self._gpu.put(lambda: self._engine._compute(self._gpu, shapes, addresses, dtypes))
        return True


class OnnxCompute:
    """What an engine computes: a graph of the contract, by ONNX Runtime, on arrays at the addresses it is given."""

    def __init__(self, engine, spec) -> None:
        """``engine`` is an `OrtEngine` of the same graphs; its `_bind` takes arrays in their own form."""
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
        arrays = {}
        for tensor in (*self._spec.inputs, *self._spec.outputs):
            shape = tensor.resolve(sizes)
            dtype = np.dtype(dtypes[tensor.name])
            view = gpu.bytes_at(addresses[tensor.name], int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)
            assert not np.issubdtype(view.dtype, np.floating) or tensor.name not in shapes or np.isfinite(view).all(), (
                f"{tensor.name} holds NaN"
            )
            arrays[tensor.name] = view.astype(tensor.array_dtype, copy=False)
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
            return FakeEngine(module, gpu, described, computes[described["graph"]])

    module.Runtime = Runtime
    return module


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
                for which in ("least", "likely", "most")
            ]
            for tensor in spec.inputs
        }
        for ranges in cases.values()
    ]
    path.write_text(json.dumps({"graph": graph, "tensors": tensors, "profiles": profiles}))
