"""Devices of PyTorch, with `torch.cuda` replaced: a GPU that cannot be used says why, and captured work is PyTorch's.

No GPU is needed: calls and messages are checked here, and nothing of CUDA itself.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from flamingo_rt.engines.gpu.nvidia_driver import Gpu
from flamingo_rt.errors import DataError, DependencyError, UsageError
from flamingo_rt.model.torch_device import CudaDevice, Device, open_device, runs_on, usual_dtype


class FakeCuda:
    """Stands in for the functions of `torch.cuda`; a capture calls nothing but the work itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.built, self.capability, self.integrated, self.count = ["sm_80", "sm_90"], (9, 0), False, 1
        self.captured: list[dict] = []
        self.replayed = 0
        self.refused: str | None = None
        cuda = self

        class CUDAGraph:
            def replay(self) -> None:
                cuda.replayed += 1

        @contextmanager
        def graph(made, pool, stream, capture_error_mode):
            cuda.captured.append({"pool": pool, "stream": stream, "mode": capture_error_mode})
            yield
            if cuda.refused:
                raise RuntimeError(cuda.refused)

        replaced = {
            "is_available": lambda: True, "device_count": lambda: self.count, "get_arch_list": lambda: self.built,
            "get_device_capability": lambda place: self.capability,
            "get_device_properties": lambda place: SimpleNamespace(name="Fake", is_integrated=self.integrated),
            "device": lambda place: nullcontext(), "mem_get_info": lambda place: (3_000_000, 8_000_000),
            "memory_reserved": lambda place: 2_000_000, "memory_allocated": lambda place: 500_000,
            "CUDAGraph": CUDAGraph, "graph": graph, "Stream": lambda place: f"stream on {place}",
            "graph_pool_handle": lambda: "pool",
        }
        for name, value in replaced.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.fixture
def cuda(monkeypatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


# Devices that can be used


@pytest.mark.parametrize(("name", "place"), [("cuda", "cuda:0"), ("cuda:1", "cuda:1")])
def test_a_gpu_is_named_as_in_pytorch(cuda, name, place) -> None:
    cuda.count = 2
    device = open_device(name)
    assert str(device.place) == place
    assert device.title == "Fake"


@pytest.mark.parametrize(("capability", "dtype"), [
    ((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((12, 0), torch.bfloat16)])
def test_numbers_are_bfloat16_where_the_gpu_has_it(cuda, capability, dtype) -> None:
    cuda.capability = capability
    assert usual_dtype(CudaDevice(torch.device("cuda", 0))) == dtype
    assert usual_dtype(Device()) == torch.float32


def test_memory_that_pytorch_keeps_counts_as_free(cuda) -> None:
    assert open_device("cuda").available_bytes() == 3_000_000 + 1_500_000
    cuda.integrated = True  # the system counts it
    cuda.built = ["sm_90"]
    assert open_device("cuda").available_bytes() is None


# Devices that cannot


@pytest.mark.parametrize("name", ["", "mps", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:\uff11", "cuda:99999", "CUDA"])
def test_an_unknown_device_is_a_usage_error(cuda, name) -> None:
    with pytest.raises(UsageError, match=r"unknown device '.*'; known: cpu, cuda, and cuda:N"):
        open_device(name)


def test_a_gpu_that_is_not_there_is_a_usage_error(cuda) -> None:
    with pytest.raises(UsageError, match="there is no device cuda:1: CUDA finds 1 GPU, cuda:0"):
        open_device("cuda:1")
    cuda.count = 4
    with pytest.raises(UsageError, match="CUDA finds 4 GPUs, cuda:0 to cuda:3"):
        open_device("cuda:7")


def test_a_pytorch_without_cuda_says_so(monkeypatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(DependencyError, match=r"device cuda: the installed PyTorch .* has no CUDA: install a CUDA"):
        open_device("cuda")


def test_a_machine_without_a_gpu_says_so(cuda, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("flamingo_rt.model.torch_device.find_gpu", lambda: None)
    with pytest.raises(DependencyError, match="device cuda: no NVIDIA GPU is found: it needs one and its driver"):
        open_device("cuda")


def test_cuda_that_does_not_start_says_why(cuda, monkeypatch) -> None:
    def old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old\n(found version 12020).")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", old)
    monkeypatch.setattr("flamingo_rt.model.torch_device.find_gpu", lambda: Gpu("Fake", "9.0", 1, False))
    with pytest.raises(DependencyError, match=r"CUDA 13\.0 .* does not start on Fake \(The NVIDIA driver .* too old "
                                              r"\(found version 12020\)\.\): update the driver"):
        open_device("cuda")


def test_a_gpu_without_kernels_is_named_with_what_runs_on_it(cuda) -> None:
    cuda.capability, cuda.integrated = (8, 7), True
    with pytest.raises(DependencyError, match=r"Fake has compute capability 8\.7, and PyTorch .* was built for sm_80, "
                                              r"sm_90, none of which .* for sm_87; --backend tensorrt runs on it"):
        open_device("cuda")


@pytest.mark.parametrize(("target", "capability", "integrated", "runs"), [
    ("sm_80", (8, 6), False, True), ("sm_86", (8, 0), False, False), ("sm_80", (9, 0), False, False),
    ("sm_80", (8, 7), True, False), ("sm_87", (8, 7), True, True), ("compute_80", (8, 7), True, True),
    ("compute_80", (12, 1), False, True), ("compute_90", (8, 9), False, False), ("sm_90a", (9, 0), False, True),
    ("sm_100a", (10, 3), False, False), ("sm_120", (12, 1), False, True), ("compute_100f", (10, 3), False, True),
    ("compute_100f", (12, 0), False, False), ("gfx90a", (9, 0), False, False),
])
def test_code_runs_on_the_gpus_that_cuda_says(target, capability, integrated, runs) -> None:
    assert runs_on(target, *capability, integrated) is runs


# Errors of a run


def test_too_little_memory_says_how_much_there_is(cuda) -> None:
    said = r"too little memory for running the model: 3\.0 MB of 8\.0 MB are free; use fewer rows or shots"
    with pytest.raises(DataError, match=said), open_device("cuda").running("running the model"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_an_error_of_cuda_says_while_what(cuda) -> None:
    device = open_device("cuda")
    said = "the GPU failed while running x: CUDA error: unspecified launch failure; start the program again"
    with pytest.raises(DataError, match=said), device.running("running x"):
        raise RuntimeError("CUDA error: unspecified\nlaunch failure")
    with pytest.raises(RuntimeError, match="of another kind"), device.running("running x"):
        raise RuntimeError("of another kind")


def test_float32_is_not_rounded_in_convolutions(cuda) -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled
    with open_device("cuda").precise():
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled) == (False, before[1])
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled) == before


# CUDA graphs


def test_captures_share_one_stream_and_one_pool_of_memory(cuda) -> None:
    device, ran = open_device("cuda"), []
    replays = [device.capture(lambda: ran.append(1)) for _ in range(2)]
    assert cuda.captured == [{"pool": "pool", "stream": "stream on cuda:0", "mode": "thread_local"}] * 2
    assert len(ran) == 2
    for replay in replays:
        replay()
    assert cuda.replayed == 2


def test_what_cannot_be_captured_is_said_once(cuda, caplog) -> None:
    device = open_device("cuda")
    cuda.refused = "CUDA error: operation not permitted\nwhen stream is capturing"
    with caplog.at_level(logging.WARNING):
        assert [device.capture(lambda: None) for _ in range(3)] == [None] * 3
    (said,) = caplog.messages
    assert said.endswith("CUDA error: operation not permitted when stream is capturing")
    assert len(cuda.captured) == 1


def test_without_cuda_graphs_nothing_is_captured(cuda) -> None:
    assert open_device("cuda", cuda_graphs=False).capture(lambda: None) is None
    assert not cuda.captured
