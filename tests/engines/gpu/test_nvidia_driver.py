"""The driver, and the GPU as it describes it, through both libraries and without any."""

from __future__ import annotations

import ctypes

import pytest
from fake_cuda import install_cuda, uninstall
from fake_gpu import CUDA_BINDINGS, PYCUDA, FakeGpu

from flamingo_rt.engines.gpu import nvidia_driver
from flamingo_rt.engines.gpu.nvidia_driver import Gpu, find_gpu, obstacle, open_driver, required_gpu
from flamingo_rt.errors import DependencyError

NO_LIBRARY = r"neither PyCUDA nor cuda-bindings can be imported .*: pip install 'flamingo-rt\[cuda\]'"


@pytest.fixture
def driver(gpu, monkeypatch) -> FakeGpu:
    """A driver that is installed, with a library to call it through."""
    install_cuda(monkeypatch, gpu)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    return gpu


def test_the_first_gpu_is_described(driver) -> None:
    driver.integrated, driver.memory = True, 8 << 30
    assert find_gpu() == required_gpu("tensorrt") == Gpu("Fake", "8.9", 8 << 30, integrated=True)
    assert obstacle() is None


def test_pycuda_comes_first(driver) -> None:
    assert open_driver().library == ("PyCUDA 2026.1" if driver.library == PYCUDA else "cuda-bindings 13.0.0")


def test_without_a_driver_there_is_no_gpu_whatever_is_installed(driver, monkeypatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    driver.failures["cuInit"] = RuntimeError("libcuda.so.1 is not found")
    for libraries in (("pycuda.driver",), ("pycuda", "cuda.bindings")):  # PyCUDA's extension links to the driver
        uninstall(monkeypatch, *libraries)
        assert find_gpu() is None
        assert obstacle() is None
        with pytest.raises(DependencyError, match=r"^no NVIDIA GPU is found: the ort-cuda backend needs one and"):
            required_gpu("ort-cuda")
        with pytest.raises(DependencyError, match=r"^no NVIDIA driver is found here|neither PyCUDA nor cuda-bind"):
            open_driver()


def test_a_driver_that_nothing_can_call_is_said_with_what_to_install(driver, monkeypatch) -> None:
    uninstall(monkeypatch, "pycuda", "cuda.bindings")
    assert find_gpu() is None
    with pytest.raises(DependencyError, match=rf"^the tensorrt backend needs an NVIDIA GPU: {NO_LIBRARY}"):
        required_gpu("tensorrt")


@pytest.mark.parametrize("count", [True, False], ids=["status", "count"])
def test_a_driver_without_a_gpu_says_so(driver, count) -> None:
    if count:
        driver.failures["cuInit"] = "CUDA_ERROR_NO_DEVICE"
    else:
        driver.count = 0
    assert find_gpu() is None
    with pytest.raises(DependencyError, match=r"CUDA finds no GPU .*: look at nvidia-smi and CUDA_VISIBLE_DEVICES"):
        required_gpu("tensorrt")


def test_a_driver_that_does_not_start_is_said_with_the_librarys_name(driver) -> None:
    driver.failures["cuInit"] = "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"
    assert find_gpu() is None
    library = "PyCUDA 2026.1" if driver.library == PYCUDA else "cuda-bindings 13.0.0"
    with pytest.raises(DependencyError, match=rf"start through {library} \(cuInit failed: .*\): look at nvidia"):
        open_driver()


def test_a_driver_older_than_the_library_is_said_with_both_ways_out(driver) -> None:
    driver.failures["cuInit"], driver.newest_cuda = "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", 12020
    library, way = {
        True: ("PyCUDA 2026.1", "compile PyCUDA again, with the toolkit of CUDA 12"),
        False: ("cuda-bindings 13.0.0", r"pip install 'cuda-bindings==12\.\*'"),
    }[driver.library == PYCUDA]
    with pytest.raises(
        DependencyError, match=rf"the driver has CUDA 12.2, {library} is for 13.0: update it, or {way}$"
    ):
        open_driver()
    driver.newest_cuda = 11080
    with pytest.raises(DependencyError, match=r"the driver has CUDA 11.8, .* is for 13.0: update it$"):
        open_driver()


def test_a_driver_that_lacks_a_function_is_too_old(monkeypatch) -> None:
    """Through cuda-bindings, that is: PyCUDA's extension could not be imported."""
    gpu = FakeGpu(library=CUDA_BINDINGS)
    install_cuda(monkeypatch, gpu)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    gpu.failures["cuInit"] = RuntimeError("cuGetProcAddress_v2 is missing")
    with pytest.raises(DependencyError, match=r"cuInit failed: cuGetProcAddress_v2 is missing\): .* update the"):
        open_driver()


def test_a_driver_without_a_version_is_not_called_old(driver) -> None:
    driver.failures |= dict.fromkeys(("cuInit", "cuDriverGetVersion"), "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH")
    with pytest.raises(DependencyError, match=r": look at nvidia-smi, or update the driver$"):
        open_driver()


def test_only_the_driver_is_loaded_and_nothing_in_it_called(monkeypatch) -> None:
    loaded = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: loaded.append(name) or object())
    assert nvidia_driver._is_installed()
    assert loaded == ["libcuda.so.1"]
