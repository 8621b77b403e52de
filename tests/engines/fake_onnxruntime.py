"""A stand-in for onnxruntime-gpu, on that for CUDA: the real onnxruntime computes, on the CPU, when the stream is
waited for.

It is strict about what it can see: what is bound must be allocated, of the contract's type and shape, and hold numbers;
the provider, our stream and the record of where nodes go must be asked for. Bound where the graph does not read it, an
input is copied then and never again, as in ONNX Runtime.

A session that captures makes the first run of an annotation id three times, and replays it from then on in the same
thread: what was bound then is read and written, so it must be bound in every run of that id, and nothing of it may lie
in host memory. A run of such a session without an id is refused.

It cannot show: whether CUDA has the kernels and computes the same; where ONNX Runtime really puts nodes and reads
inputs; what waits inside a run, or cannot be captured; the real library's memory. Names and arguments were read in its
sources.
"""

from __future__ import annotations

import ctypes
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as real
from fake_cuda import install_cuda
from fake_gpu import FakeGpu

from flamingo_rt.contract import LANGUAGE_MODEL, RESAMPLER, VISION_ENCODER

CUDA, RTX, CPU = "CUDAExecutionProvider", "NvTensorRTRTXExecutionProvider", "CPUExecutionProvider"


class Options:
    """`SessionOptions` and `RunOptions`: what was set."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}
        self.providers: list[tuple[str, dict[str, str]]] = []
        self.sizes: dict[str, int] = {}
        self.log_severity_level = 2

    def add_provider_for_devices(self, devices: list, options: dict[str, str]) -> None:
        assert options["has_user_compute_stream"] == "1"
        self.providers += [(device.ep_name, {"device_id": "0", **options}) for device in devices]

    def add_free_dimension_override_by_name(self, letter: str, size: int) -> None:
        self.sizes[letter] = size

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value

    add_run_config_entry = add_session_config_entry


class FakeOnnxRuntime:
    """The module. ``without_kernels`` are the operators that go to the CPU, ``on_host`` the inputs that graphs read in
    host memory, ``failure`` what a run raises. ``capture_refused`` is what a session that shall capture raises when it
    is made, ``capture_failure`` what the first run of an id does."""

    __version__, cuda_version = "1.31.1", "13.0"
    SessionOptions = RunOptions = Options

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.available, self.starts = [CUDA, CPU], True
        self.without_kernels: set[str] = {"Shape"}
        self.on_host: set[str] = {"cache_length"}
        self.failure: Exception | None = None
        self.capture_refused: Exception | None = None
        self.capture_failure: Exception | None = None
        self.plugins: list[SimpleNamespace] = []
        self.sessions: list[FakeSession] = []
        module = self

        class InferenceSession(FakeSession):
            def __init__(
                self, model: str | bytes, options: Options, providers: list | None, enable_fallback: int
            ) -> None:
                assert enable_fallback == 0, "a session that cannot be made is made again on the CPU"
                super().__init__(module, model, options, options.providers if providers is None else providers)
                module.sessions.append(self)

        self.InferenceSession = InferenceSession

    def get_available_providers(self) -> list[str]:
        return self.available

    def register_execution_provider_library(self, name: str, path: str) -> None:
        assert path.endswith(".so")
        self.plugins.append(SimpleNamespace(ep_name=name))

    def get_ep_devices(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(ep_name=CPU), *self.plugins]


class FakeSession:
    """`InferenceSession`."""

    def __init__(self, module: FakeOnnxRuntime, model: str | bytes, options: Options, providers: list) -> None:
        assert module.gpu.current == 1, "no context is current, or several are"
        ((self.provider, asked),) = providers
        assert asked["user_compute_stream"] == "7"
        assert asked["device_id"] == "0"
        assert options.entries["session.record_ep_graph_assignment_info"] == "1"
        self.captures = asked.get("enable_cuda_graph") == "1"
        if self.captures and module.capture_refused is not None:
            raise module.capture_refused
        self.captured: dict[tuple[int, str], dict] = {}  # by thread and annotation id: what was bound
        self.ids: list[str] = []  # of the runs
        own = real.SessionOptions()
        own.log_severity_level, own.intra_op_num_threads = 3, 1
        for key, value in options.entries.items():
            own.add_session_config_entry(key, value)
        for letter, size in options.sizes.items():
            own.add_free_dimension_override_by_name(letter, size)
        self._session = real.InferenceSession(model, own, providers=[CPU])
        self.module, self.model = module, model
        names = {value.name for value in (*self._session.get_inputs(), *self._session.get_outputs())}
        self.graph = (
            LANGUAGE_MODEL if "logits" in names else VISION_ENCODER if "pixel_values" in names else RESAMPLER
        )
        self.bindings: list[FakeBinding] = []
        self.get_inputs, self.get_outputs = self._session.get_inputs, self._session.get_outputs
        self.run = self._session.run

    def get_providers(self) -> list[str]:
        return [self.provider, CPU] if self.module.starts else [CPU]

    def get_provider_graph_assignment_info(self) -> list[SimpleNamespace]:
        nodes = [node for part in self._session.get_provider_graph_assignment_info() for node in part.get_nodes()]
        parts = {self.provider: [], CPU: []}
        for node in nodes:
            parts[CPU if node.op_type in self.module.without_kernels else self.provider].append(node)
        return [
            SimpleNamespace(ep_name=name, get_nodes=lambda members=members: members) for name, members in parts.items()
        ]

    def get_input_memory_infos(self) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(name="Cpu" if value.name in self.module.on_host else "Cuda") for value in self.get_inputs()
        ]

    def io_binding(self) -> FakeBinding:
        self.bindings.append(FakeBinding(self))
        return self.bindings[-1]

    def run_with_iobinding(self, binding: FakeBinding, options: Options) -> None:
        gpu, entries = self.module.gpu, dict(options.entries)
        graph_id = entries.pop("gpu_graph_id") if self.captures else "-1"
        assert entries == {"disable_synchronize_execution_providers": "1"}
        assert graph_id == str(int(graph_id)), "an id is a number"
        assert graph_id != "0", "the id 0 is ONNX Runtime's own"
        if self.module.failure is not None:
            raise self.module.failure
        self.ids.append(graph_id)
        gpu.calls.append(("execute", self.graph))
        if graph_id == "-1":
            gpu.put(binding.bound_now())
            return
        place, bound = (threading.get_ident(), graph_id), binding.described()
        if place not in self.captured:
            if self.module.capture_failure is not None:
                raise self.module.capture_failure
            self.captured[place] = bound
            for _ in range(2):  # as it is, to allocate memory; captured, it does not run
                gpu.put(binding.bound_now())
        assert self.captured[place] == bound, f"run {graph_id} is bound otherwise than it was captured"
        gpu.put(binding.bound_now())


class FakeBinding:
    """`IOBinding`. A tensor is (name, type, shape, view of its memory); views are taken again at each run."""

    def __init__(self, session: FakeSession) -> None:
        self._session, self._gpu = session, session.module.gpu
        self.inputs: dict[str, tuple[str, Any, tuple, Any]] = {}
        self.outputs: dict[str, tuple[str, Any, tuple, Any]] = {}
        self.addresses: dict[str, int] = {}

    def described(self) -> dict[str, tuple]:
        """Places, types, shapes and addresses of all that is bound; nothing in host memory."""
        bound = {**self.inputs, **self.outputs}
        assert {device for device, *_ in bound.values()} == {"cuda"}, "a replay does not read host memory again"
        return {name: (*about, self.addresses[name]) for name, (*about, _) in bound.items()}

    def bind_input(self, name: str, device: str, index: int, kind: Any, shape: tuple, address: int) -> None:
        assert index == 0
        self._check(name, kind, shape, self._session.get_inputs())
        wanted = "cpu" if name in self._session.module.on_host else "cuda"
        view = self._viewer(name, device, kind, shape, address)
        if device != wanted:
            copied = view().copy()
            self.inputs[name] = (device, kind, shape, lambda: copied)
        else:
            self.inputs[name] = (device, kind, shape, view)

    def bind_output(self, name: str, device: str, index: int, kind: Any, shape: tuple, address: int) -> None:
        assert (device, index) == ("cuda", 0)
        self._check(name, kind, shape, self._session.get_outputs())
        self.outputs[name] = (device, kind, shape, self._viewer(name, device, kind, shape, address))

    def bound_now(self) -> Any:
        """A run of what is bound; what is read on the host must stay as it is until the run is done."""
        inputs, outputs = dict(self.inputs), dict(self.outputs)
        on_host = {name: view().copy() for name, (device, _, _, view) in inputs.items() if device == "cpu"}
        return lambda: self._compute(inputs, outputs, on_host)

    def _compute(self, inputs: dict, outputs: dict, on_host: dict[str, np.ndarray]) -> None:
        binding = self._session._session.io_binding()
        arrays = {}
        for tensors, bind in ((inputs, binding.bind_input), (outputs, binding.bind_output)):
            for name, (_, kind, shape, view) in tensors.items():
                array = view()
                assert name not in on_host or (array == on_host[name]).all(), f"{name} changed before it was read"
                assert bind == binding.bind_output or array.dtype.kind != "f" or np.isfinite(array).all(), (
                    f"{name} holds NaN"
                )
                bind(name, "cpu", 0, kind, shape, array.ctypes.data)
                arrays.setdefault(array.ctypes.data, set()).add(name)
        for names in arrays.values():
            kinds = {name.replace("present", "past_key_values") for name in names}
            assert len(kinds) == 1, f"{names} are in the same place"
        self._session._session.run_with_iobinding(binding)

    def _viewer(self, name: str, device: str, kind: Any, shape: tuple, address: int) -> Any:
        count = int(np.prod(shape)) * np.dtype(kind).itemsize
        self.addresses[name] = address

        def view() -> np.ndarray:
            on_host = (ctypes.c_uint8 * count).from_address(address)
            memory = self._gpu.bytes_at(address, count) if device == "cuda" else np.ctypeslib.as_array(on_host)
            return memory.view(kind).reshape(shape)

        view()  # it must be there when it is bound
        return view

    @staticmethod
    def _check(name: str, kind: Any, shape: tuple, known: list) -> None:
        expected = next(value for value in known if value.name == name)
        names = {"float32": "float"}
        assert expected.type == f"tensor({names.get(np.dtype(kind).name, np.dtype(kind).name)})"
        assert all(isinstance(want, str) or want == size for want, size in zip(expected.shape, shape, strict=True))


def install(monkeypatch: Any, gpu: FakeGpu) -> FakeOnnxRuntime:
    """Let imports by the providers find the stand-ins; the CPU backend keeps the real library."""
    from flamingo_rt.engines.gpu.nvidia_driver import Gpu

    runtime = FakeOnnxRuntime(gpu)
    install_cuda(monkeypatch, gpu)
    monkeypatch.setattr("flamingo_rt.engines.ort_gpu.import_onnxruntime", lambda extra="cpu": runtime)
    monkeypatch.setattr("flamingo_rt.engines.gpu.nvidia_driver.find_gpu", lambda: Gpu("Fake", "8.9", 1 << 30, False))
    return runtime
