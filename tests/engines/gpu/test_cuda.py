"""`Cuda` through both libraries, on the stand-in for a GPU: what it does, and what it says when it cannot."""

from __future__ import annotations

import ctypes
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_calls import CALLS
from fake_cuda import install_cuda, uninstall
from fake_gpu import CUDA_BINDINGS, PYCUDA, FakeGpu

from flamingo_rt.cli.doctor import _try_builder, _try_cuda
from flamingo_rt.engines.gpu.cuda import Cuda
from flamingo_rt.errors import DataError, DependencyError

pytestmark = [
    pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("error:.*(out-of-thread|clean-up)"),
]


@pytest.fixture
def cuda(gpu, monkeypatch) -> Cuda:
    install_cuda(monkeypatch, gpu)
    return Cuda()


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_cuda_does_what_it_says(call, cuda, gpu) -> None:
    call(cuda)
    assert gpu.current == 0
    assert gpu.used == 0
    assert not gpu.pinned
    assert not gpu.graphs


def test_pycuda_without_cuda_bindings_has_no_graphs_and_waits_for_everything(gpu, monkeypatch) -> None:
    gpu.library = PYCUDA
    install_cuda(monkeypatch, gpu)
    uninstall(monkeypatch, "cuda.bindings")
    cuda = Cuda()
    assert not cuda.captures
    for call in CALLS:
        call(cuda)
    assert gpu.called("wait for") == [("wait for", "all")]
    assert not gpu.called("begin capture")


def test_streams_events_graphs_and_the_context_end_with_their_last_reference(gpu, monkeypatch) -> None:
    install_cuda(monkeypatch, gpu)
    cuda = Cuda()
    assert (gpu.retained, gpu.streams) == (1, 1)
    with cuda.current():
        kept = [cuda.event(), cuda.pinned((4,), np.float32), cuda.allocate(64, "a test"), cuda.capture(lambda: None)]
    del cuda
    assert gpu.retained == 1, "what is allocated keeps it"
    kept.clear()
    assert (gpu.retained, gpu.streams, gpu.used) == (0, 0, 0)
    assert not gpu.pinned
    assert not gpu.executables
    assert not gpu._events


def test_what_outlives_its_context_is_not_freed_and_says_nothing(monkeypatch) -> None:
    gpu = FakeGpu(library=CUDA_BINDINGS)
    install_cuda(monkeypatch, gpu)
    cuda = Cuda()
    with cuda.current():
        memory = cuda.allocate(64, "a test")
    gpu.failures["cuCtxPushCurrent"] = "CUDA_ERROR_CONTEXT_IS_DESTROYED"
    del memory
    assert gpu.used == 64


def test_an_error_leaves_no_context_current(cuda, gpu) -> None:
    with pytest.raises(KeyError), cuda.current():
        raise KeyError
    assert gpu.current == 0


def test_threads_take_turns(cuda, gpu) -> None:
    entered, order = threading.Event(), []

    def other() -> None:
        entered.set()
        with cuda.current():
            order.append("other")

    with cuda.current():
        thread = threading.Thread(target=other)
        thread.start()
        assert entered.wait(10)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


@pytest.mark.parametrize("library", ["pycuda", "cuda.bindings"])
def test_one_of_the_two_libraries_is_enough(gpu, monkeypatch, library) -> None:
    gpu.library = PYCUDA
    install_cuda(monkeypatch, gpu)
    uninstall(monkeypatch, library)
    assert Cuda().library == {"pycuda": "cuda-bindings 13.0.0", "cuda.bindings": "PyCUDA 2026.1"}[library]


def test_a_pycuda_that_cannot_be_imported_is_passed_over(gpu, monkeypatch) -> None:
    """Its extension may miss symbols of the driver."""
    install_cuda(monkeypatch, gpu)
    uninstall(monkeypatch, "pycuda.driver")
    assert Cuda().library == "cuda-bindings 13.0.0"


def test_without_either_it_is_said_what_to_install(gpu, monkeypatch) -> None:
    uninstall(monkeypatch, "pycuda", "cuda.bindings")
    with pytest.raises(DependencyError, match=r"neither PyCUDA nor cuda-bindings .*pip install 'flamingo-rt\[cuda\]'"):
        Cuda()


@pytest.mark.parametrize("function", ["cuDevicePrimaryCtxRetain", "cuCtxPushCurrent", "cuStreamCreate"])
@pytest.mark.parametrize("status", ["CUDA_ERROR_OUT_OF_MEMORY", "CUDA_ERROR_DEVICE_UNAVAILABLE"])
def test_a_gpu_that_is_full_or_taken_is_said_with_where_to_look(gpu, monkeypatch, function, status) -> None:
    install_cuda(monkeypatch, gpu)
    gpu.failures[function] = status
    with pytest.raises(
        DependencyError, match=rf"does not start on the GPU \({function} failed: .*in use by one process alone\?"
    ) as refused:
        Cuda()
    gpu.failures.clear()  # so that the context can be let go, with the error's frames
    del refused
    assert gpu.current == 0


def test_a_driver_that_is_too_old_for_the_context_is_said(gpu, monkeypatch) -> None:
    install_cuda(monkeypatch, gpu)
    gpu.failures["cuDevicePrimaryCtxRetain"], gpu.newest_cuda = "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", 12060
    with pytest.raises(DependencyError, match=r"does not start on the GPU .*the driver has CUDA 12.6, .* is for 13.0"):
        Cuda()


def test_memory_that_runs_out_says_what_it_was_for_and_what_fits(cuda, gpu) -> None:
    gpu.memory = 3_000_000
    with cuda.current():
        held = cuda.allocate(2_000_000, "a test")
        with pytest.raises(DataError, match=r"a cache takes 2.0 MB more, 1.0 MB of 3.0 MB are free; use fewer"):
            cuda.allocate(2_000_000, "a cache")
        with pytest.raises(DataError, match="are free; 1000000 bytes would fit"):
            cuda.allocate(2_000_000, "a cache", lambda free: f"{free} bytes would fit")
        assert cuda.try_to_allocate(2_000_000) is None
        assert cuda.free_bytes() == 1_000_000
        del held


def test_host_memory_that_cannot_be_pinned_is_said(cuda, gpu) -> None:
    gpu.failures["cuMemHostAlloc"] = "CUDA_ERROR_OUT_OF_MEMORY"
    with cuda.current(), pytest.raises(DataError, match=r"4.0 MB of the machine's memory cannot be pinned .*free mem"):
        cuda.pinned((1000, 1000), np.float32)


def test_an_event_that_finds_no_memory_is_said_as_such(cuda, gpu) -> None:
    gpu.failures["cuEventCreate"] = "CUDA_ERROR_OUT_OF_MEMORY"
    with pytest.raises(DataError, match=r"too little memory \(cuEventCreate failed: .*\): use fewer"), cuda.current():
        cuda.event()


def test_a_run_that_fails_is_said_with_what_helps(cuda, gpu) -> None:
    gpu.failures["cuStreamSynchronize"] = "CUDA_ERROR_ILLEGAL_ADDRESS"
    with pytest.raises(DataError, match=r"failed in a run of the model: cuStreamSynch.*start the"), cuda.current():
        cuda.synchronize()
    assert gpu.current == 0


@pytest.mark.parametrize("graphs", [True, False])
def test_doctor_says_which_library_cuda_runs_on(gpu, monkeypatch, graphs) -> None:
    install_cuda(monkeypatch, gpu)
    if not graphs:
        gpu.library = PYCUDA
        install_cuda(monkeypatch, gpu)
        uninstall(monkeypatch, "cuda.bindings")
    library = "PyCUDA 2026.1" if gpu.library == PYCUDA else "cuda-bindings 13.0.0"
    suffix = "with CUDA graphs" if graphs else "without CUDA graphs: cuda-bindings is not installed"
    assert _try_cuda() == f"Fake through {library}, {suffix}"


def test_doctors_builder_says_what_keeps_the_gpu_from_being_found(gpu, monkeypatch) -> None:
    install_cuda(monkeypatch, gpu)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0"))
    gpu.failures["cuInit"] = "CUDA_ERROR_NO_DEVICE"
    with pytest.raises(DataError, match=r"TensorRT 10.3.0: CUDA finds no GPU .*: look at nvidia-smi and CUDA_VISIBLE"):
        _try_builder("tensorrt")


def test_memory_of_the_machine_is_not_counted_as_the_gpus(gpu, monkeypatch) -> None:
    install_cuda(monkeypatch, gpu)
    gpu.integrated = True
    assert Cuda().free_bytes() is None
