"""A GPU's ceilings, measured on its own stream by its own clock, through the engine's runtime. On stand-ins."""

from __future__ import annotations

import sys

import pytest
from fake_gpu import FakeGpu
from runners import Runner

from flamingo_rt.bench import BenchOptions, measure
from flamingo_rt.bench.rates import HostProbe, probe_of
from flamingo_rt.cli.doctor import _try_tensorrt
from flamingo_rt.engines.gpu import device_probe
from flamingo_rt.engines.gpu.nvidia_driver import Gpu
from flamingo_rt.engines.tensorrt.callbacks import Caught, make_log
from flamingo_rt.engines.tensorrt.versions import TENSORRT_RTX, import_tensorrt
from flamingo_rt.errors import DataError, DependencyError

# What a stand-in finds when Python frees its memory is a warning otherwise.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
LITTLE = 1 << 16


@pytest.fixture(autouse=True)
def _little_to_measure(monkeypatch) -> None:
    monkeypatch.setattr(device_probe, "COPY_BYTES", LITTLE)
    monkeypatch.setattr(device_probe, "SIZE", 32)


def test_memory_is_copied_within_the_device_and_given_back(runner: Runner, gpu: FakeGpu) -> None:
    backend = runner.backend("tensorrt")
    held = gpu.used
    with probe_of(backend, None, 1) as probe:
        rate, how = probe.bandwidth()
    assert rate > 0
    assert "within Fake, read and written" in how
    copies = device_probe.REPEATS * device_probe.ROUNDS
    assert gpu.called("copy") == [("copy", LITTLE)] * copies
    assert gpu.used == held


def test_products_are_computed_by_the_engines_runtime_in_its_type(runner: Runner, gpu: FakeGpu) -> None:
    with probe_of(runner.backend("tensorrt"), None, 1) as probe:
        rate, how = probe.products()
        assert len(gpu.called("execute")) == device_probe.REPEATS * device_probe.ROUNDS
    assert rate > 0
    assert how == "MatMul of TensorRT 10.15.1, 32³, float32"
    assert gpu.called("execute")[0][1] == "product"


def test_doctor_multiplies_with_tensorrt(runner: Runner, monkeypatch) -> None:
    monkeypatch.setattr("flamingo_rt.engines.gpu.nvidia_driver.find_gpu", lambda: Gpu("Fake", "8.9", 1 << 30, False))
    runner.backend("tensorrt")  # installs the stand-ins
    assert _try_tensorrt() == "TensorRT 10.15.1, Fake; runs the engines that flamingo-rt build puts into a bundle"
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(DependencyError, match="tensorrt cannot be imported"):
        _try_tensorrt()


def test_a_product_that_is_not_compiled_leaves_the_bandwidth(runner: Runner, monkeypatch) -> None:
    backend = runner.backend("tensorrt")

    def refuse(*arguments) -> None:
        raise DataError("TensorRT cannot compile it")

    monkeypatch.setattr(device_probe, "compiled_product", refuse)
    with probe_of(backend, None, 1) as probe:
        assert probe.products() == (None, "not measured: TensorRT cannot compile it")
        assert probe.bandwidth()[0] > 0


def test_an_engine_of_another_runtime_has_the_bandwidth_alone(runner: Runner) -> None:
    backend = runner.backend("tensorrt")
    backend._tensorrt = None
    with probe_of(backend, None, 1) as probe:
        assert probe.products() == (None, "not measured: this backend has no product of its own to measure")
        assert probe.bandwidth()[0] > 0


def test_too_little_device_memory_is_explained(runner: Runner, gpu: FakeGpu) -> None:
    backend = runner.backend("tensorrt")
    gpu.memory = gpu.used + LITTLE
    with probe_of(backend, None, 1) as probe, \
            pytest.raises(DataError, match=r"measuring the GPU's memory takes 0.1 MB"):
        probe.bandwidth()


def test_the_cpu_is_measured_where_an_engine_has_no_device(ort) -> None:
    assert isinstance(probe_of(ort.backend, 1, 1), HostProbe)


@pytest.mark.parametrize("lowering", ["tensorrt", "tensorrt-classic"])
def test_a_bench_of_engines_has_the_gpus_ceilings(runner: Runner, lowering: str) -> None:
    options = BenchOptions(shots=(0,), batch=(1,), context=(5,), tokens=2, runs=1, warmup=0)
    report = measure(runner.model(lowering), options, folder=runner.bundles[lowering].path)
    assert report.model.backend == "tensorrt"
    assert "Fake" in report.rates.bandwidth_by
    assert "TensorRT" in report.rates.flops_by
    assert all(result.against.ceiling > 0 for result in report.decode)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_real_compiler_takes_the_product(dtype: str) -> None:
    module = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    log = make_log(module, Caught())
    backend = device_probe.compiled_product(import_tensorrt(TENSORRT_RTX), dtype, log, capability="86")
    assert memoryview(backend).nbytes > 1000
    assert not log.errors
