"""Checks on a real NVIDIA GPU, skipped elsewhere."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from cuda_calls import CALLS
from fake_cuda import uninstall
from fake_gpu import CUDA_BINDINGS, LIBRARIES, PYCUDA
from small_model import small_checkpoint

import flamingo_rt
from flamingo_rt import Image, PixelValues
from flamingo_rt.checkpoints import open_checkpoint
from flamingo_rt.engines.gpu.cuda import Cuda
from flamingo_rt.engines.gpu.device_probe import DeviceProbe
from flamingo_rt.engines.gpu.nvidia_driver import find_gpu, obstacle
from flamingo_rt.engines.ort_gpu import CUDA_BACKEND, PROVIDERS
from flamingo_rt.engines.tensorrt.versions import TENSORRT, TENSORRT_RTX, import_tensorrt
from flamingo_rt.errors import DependencyError
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.processing.preprocess import visual_pixels
from flamingo_rt.runtime.model import Model

MISSING = None if find_gpu() else obstacle() or "there is no NVIDIA GPU with a driver here"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]


@pytest.fixture(params=LIBRARIES)
def library(request, monkeypatch) -> str:
    """The library that the driver is called through."""
    if request.param == CUDA_BINDINGS:
        uninstall(monkeypatch, "pycuda", "pycuda.driver")
    name = {PYCUDA: "pycuda.driver", CUDA_BINDINGS: "cuda.bindings.driver"}[request.param]
    pytest.importorskip(name, exc_type=ImportError)
    return request.param


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_cuda_does_on_the_gpu_what_it_says(call, library) -> None:
    call(Cuda())


def test_onnx_runtime_on_a_gpu_gives_the_tokens_of_the_cpu(tmp_path) -> None:
    """Compare in float32, in the lowering that has CUDA kernels for it: in half precision tokens may differ."""
    ran = []
    checkpoint = open_checkpoint(small_checkpoint(tmp_path / "checkpoint"))
    exact = export_model(checkpoint, tmp_path / "exact", lowering="tensorrt").path
    half = export_model(checkpoint, tmp_path / "half", compute="fp16", compare=False).path
    expected = _tokens(flamingo_rt.load(exact, "ort"))
    for backend, provider in PROVIDERS.items():
        try:
            provider()
        except DependencyError as error:
            print(f"{backend}: {error}")
            continue
        model = flamingo_rt.load(exact, backend)
        assert _tokens(model) == expected
        _assert_pixels_are_read_on_the_device(model)
        ran.append(backend)
        if backend == CUDA_BACKEND:
            assert _tokens(flamingo_rt.load(exact, backend, cuda_graphs=False)) == expected, "captured or not"
            assert all(_tokens(flamingo_rt.load(half, backend)))
    if not ran:
        pytest.skip("neither onnxruntime-gpu nor the plugin for TensorRT-RTX works here")


def _tokens(model: Model) -> list[tuple[int, ...]]:
    """The tokens of a batch behind a prefix, and of beams."""
    prefix = model.prompt("Output: a red circle")
    results = model.generate_batch(["Output:", "Question: how many? Answer:"], prefix=prefix, max_new_tokens=8)
    return [result.tokens for result in (*results, model.generate("Output:", max_new_tokens=8, beams=3).result())]


@pytest.mark.parametrize("target", [TENSORRT, TENSORRT_RTX])
def test_the_gpus_memory_and_products_are_measured(target) -> None:
    try:
        runtime = import_tensorrt(target)
    except DependencyError as error:
        pytest.skip(str(error))
    with DeviceProbe(Cuda(), runtime, "float16") as probe:
        assert probe.bandwidth()[0] > 10e9
        assert probe.products()[0] > 1e12


class _OnDevice:
    """A copy of an array in device memory, as other libraries have them."""

    def __init__(self, array: np.ndarray) -> None:
        cuda = Cuda()
        with cuda.current():
            self._memory = cuda.allocate(array.nbytes, "a test")
            cuda.upload(self._memory.address, np.ascontiguousarray(array))
            cuda.synchronize()
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": array.dtype.str, "data": (self._memory.address, False), "version": 3,
        }


def _assert_pixels_are_read_on_the_device(model: Model) -> None:
    picture = Image(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    placed = PixelValues(_OnDevice(visual_pixels(picture, model.config)))
    found, expected = (
        model.generate([visual, "Output:"], max_new_tokens=8).result() for visual in (placed, picture)
    )
    assert found.tokens == expected.tokens


@pytest.mark.parametrize("target", [TENSORRT, TENSORRT_RTX])
@pytest.mark.parametrize("lowering", ["tensorrt", "tensorrt-classic"])
def test_engines_give_the_tokens_of_onnx_runtime(target, lowering, tmp_path) -> None:
    try:
        runtime = import_tensorrt(target)
    except DependencyError as error:
        pytest.skip(str(error))
    if lowering not in runtime.lowerings:
        pytest.skip(f"{runtime.title} does not compile {lowering}")
    checkpoint = open_checkpoint(small_checkpoint(tmp_path / "checkpoint"))
    bundles = {name: export_model(checkpoint, tmp_path / name, lowering=name) for name in ("ort", lowering)}
    subprocess.run(
        [sys.executable, "-m", "flamingo_rt", "build", "--model", bundles[lowering].path, "--target", target],
        check=True,
    )
    model = flamingo_rt.load(bundles[lowering].path, "tensorrt")
    assert _tokens(model) == _tokens(flamingo_rt.load(bundles["ort"].path, "ort"))
    _assert_pixels_are_read_on_the_device(model)
