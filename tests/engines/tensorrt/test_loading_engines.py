"""Opening a bundle with a GPU: which backend takes it, and what is said when the better ones do not."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from runners import assert_same

import flamingo_rt
from flamingo_rt.bundle import read_bundle
from flamingo_rt.engines.gpu.nvidia_driver import Gpu
from flamingo_rt.engines.tensorrt.engine_files import write_record
from flamingo_rt.engines.tensorrt.local_builds import remember_build
from flamingo_rt.errors import DataError, DependencyError, UsageError

# What a stand-in finds when Python frees its memory is a warning otherwise.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def with_engines(runner, tmp_path, monkeypatch) -> Path:
    """A bundle and, in it, engines for the GPU that seems to be here."""
    folder = tmp_path / "bundle"
    shutil.copytree(runner.bundles["tensorrt"].path, folder)
    engines = replace(runner.engines("tensorrt"), path=folder / "engines" / "tensorrt-fake")
    engines.path.mkdir(parents=True)
    for file in tmp_path.glob("*.engine"):
        shutil.copy(file, engines.path)
    remember_build(write_record(engines.path, engines, read_bundle(folder)), engines.path)
    monkeypatch.setattr("flamingo_rt.engines.gpu.nvidia_driver.find_gpu", lambda: Gpu("Fake", "8.9", 1 << 30, False))
    return folder


@pytest.mark.parametrize("backend", ["auto", "tensorrt"])
def test_a_bundle_with_engines_for_this_gpu_runs_on_them(with_engines, backend, ort, gpu, text) -> None:
    model = flamingo_rt.load(with_engines, backend)
    assert model.backend.name == "tensorrt"
    found, expected = (each.generate(text, max_new_tokens=4).result() for each in (model, ort))
    assert_same([found], [expected])
    assert gpu.called("execute")


def test_engines_that_do_not_run_here_are_left_for_the_cpu_with_a_warning(with_engines, monkeypatch, caplog) -> None:
    monkeypatch.setattr("flamingo_rt.engines.gpu.nvidia_driver.find_gpu", lambda: None)
    assert flamingo_rt.load(with_engines).backend.name == "ort"
    (warning,) = caplog.messages
    assert "ONNX Runtime runs it on the CPU; its engines do not run: no NVIDIA GPU is found" in warning


def test_asked_for_engines_that_do_not_run_are_an_error(with_engines, monkeypatch) -> None:
    monkeypatch.setattr("flamingo_rt.engines.gpu.nvidia_driver.find_gpu", lambda: Gpu("Other", "8.7", 1 << 30, True))
    with pytest.raises(DataError, match=r"no engines for Other .*flamingo-rt build"):
        flamingo_rt.load(with_engines, "tensorrt")
    monkeypatch.setattr("flamingo_rt.engines.gpu.nvidia_driver.find_gpu", lambda: None)
    with pytest.raises(DependencyError, match="no NVIDIA GPU is found"):
        flamingo_rt.load(with_engines, "tensorrt")


def test_a_bundle_without_engines_shows_the_command_that_builds_them(with_engines) -> None:
    shutil.rmtree(with_engines / "engines")
    with pytest.raises(DataError, match=r"has no engines for TensorRT: flamingo-rt build"):
        flamingo_rt.load(with_engines, "tensorrt")
    assert flamingo_rt.load(with_engines).backend.name == "ort"


def test_a_checkpoint_has_no_engines(bundles) -> None:
    with pytest.raises(UsageError, match=r"the tensorrt backend runs a bundle: .*flamingo-rt export"):
        flamingo_rt.load(bundles["ort"].path.parent / "checkpoint", "tensorrt")


# Engines of somebody else


@pytest.fixture
def strangers(with_engines, tmp_path, monkeypatch) -> Path:
    """The same bundle as another user sees it; what its engines bring of their own can be chosen."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another-user"))
    return with_engines


def say_version_compatible(folder: Path) -> None:
    file = folder / "engines" / "tensorrt-fake" / "engine.json"
    record = json.loads(file.read_text())
    record["options"]["version_compatible"] = True
    file.write_text(json.dumps(record))


@pytest.fixture
def runtimes(monkeypatch) -> list:
    """TensorRT's runtimes that were made."""
    made, module = [], sys.modules["tensorrt"]
    kind = module.Runtime

    def make(log):
        made.append(kind(log))
        return made[-1]

    monkeypatch.setattr(module, "Runtime", make)
    return made


def test_engines_that_the_gpu_cannot_hold_are_not_loaded(with_engines, runtimes, monkeypatch, caplog) -> None:
    monkeypatch.setattr("flamingo_rt.engines.gpu.nvidia_driver.find_gpu", lambda: Gpu("Fake", "8.9", 1000, False))
    with pytest.raises(DataError, match=r"on the GPU needs at least .*0\.0 MB are available"):
        flamingo_rt.load(with_engines, "tensorrt")
    assert runtimes == []
    assert flamingo_rt.load(with_engines).backend.name == "ort"
    assert "its engines do not run: running " in caplog.messages[0]


def test_engines_on_a_gpu_that_shares_the_memory_need_what_is_available(with_engines, runtimes, monkeypatch) -> None:
    monkeypatch.setattr("flamingo_rt.engines.gpu.nvidia_driver.find_gpu", lambda: Gpu("Fake", "8.9", 1000, True))
    monkeypatch.setattr("flamingo_rt.loading.available_bytes", lambda: 1000)
    with pytest.raises(DataError, match=r"on the GPU needs at least"):
        flamingo_rt.load(with_engines, "tensorrt")
    monkeypatch.setattr("flamingo_rt.loading.available_bytes", lambda: None)
    assert flamingo_rt.load(with_engines, "tensorrt").backend.name == "tensorrt"
    assert len(runtimes) == 1


def test_auto_leaves_strangers_engines_and_says_how_they_are_used(strangers, runtimes, caplog) -> None:
    assert flamingo_rt.load(strangers).backend.name == "ort"
    (warning,) = caplog.messages
    assert "tensorrt-fake was not built by this user on this machine, and engines are code" in warning
    assert "flamingo-rt build" in warning
    assert "--trust-engines" in warning
    assert not runtimes


def test_asked_for_strangers_engines_are_an_error_that_names_the_option(strangers, runtimes) -> None:
    with pytest.raises(DataError, match=r"engines are code.*--trust-engines \(load\(..., trust_engines=True\)\)"):
        flamingo_rt.load(strangers, "tensorrt")
    assert not runtimes


@pytest.mark.parametrize("backend", ["auto", "tensorrt"])
def test_strangers_engines_run_when_they_are_trusted_without_host_code(strangers, runtimes, backend) -> None:
    assert flamingo_rt.load(strangers, backend, trust_engines=True).backend.name == "tensorrt"
    assert [hasattr(runtime, "engine_host_code_allowed") for runtime in runtimes] == [False]


def test_strangers_host_code_takes_an_option_of_its_own(strangers, runtimes, caplog) -> None:
    say_version_compatible(strangers)
    with pytest.raises(DataError, match=r"bring a runtime that runs on the host.*--allow-engine-host-code"):
        flamingo_rt.load(strangers, "tensorrt", trust_engines=True)
    assert flamingo_rt.load(strangers, trust_engines=True).backend.name == "ort"
    assert "--allow-engine-host-code" in caplog.messages[-1]
    assert not runtimes
    assert flamingo_rt.load(strangers, trust_engines=True, allow_host_code=True).backend.name == "tensorrt"
    assert [runtime.engine_host_code_allowed for runtime in runtimes] == [True]


def test_engines_of_ones_own_are_no_longer_when_their_record_is_changed(with_engines, runtimes) -> None:
    """Such as one that says that the engines bring host code."""
    say_version_compatible(with_engines)
    with pytest.raises(DataError, match="was not built by this user"):
        flamingo_rt.load(with_engines, "tensorrt")
    assert not runtimes


def test_host_code_alone_is_nothing_to_allow(bundles) -> None:
    with pytest.raises(UsageError, match="goes with --trust-engines"):
        flamingo_rt.load(bundles["ort"].path, allow_host_code=True)


# Without engines, or where they do not run


@pytest.mark.parametrize("backend", ["auto", "ort-cuda"])
def test_onnx_runtime_with_cuda_runs_a_bundle_on_the_gpu(bundles, on_cuda, backend, ort_half, text, caplog) -> None:
    model = flamingo_rt.load(bundles["ort-fp16"].path, backend)
    assert model.backend.name == "ort-cuda"
    found, expected = (each.generate(text, max_new_tokens=4).result() for each in (model, ort_half))
    assert_same([found], [expected])
    assert not caplog.messages


def test_engines_that_do_not_run_are_left_for_cuda(with_engines, on_cuda, monkeypatch, caplog) -> None:
    monkeypatch.setattr("flamingo_rt.engines.gpu.nvidia_driver.find_gpu", lambda: Gpu("Other", "8.7", 1 << 30, True))
    assert flamingo_rt.load(with_engines).backend.name == "ort-cuda"
    (warning,) = caplog.messages
    assert "ONNX Runtime runs it on the GPU; its engines do not run: " in warning


def test_a_bundle_that_cuda_has_no_kernels_for_runs_on_the_cpu_with_a_warning(bundles, on_cuda, caplog) -> None:
    on_cuda.runtime.without_kernels |= {"GroupQueryAttention"}
    assert flamingo_rt.load(bundles["ort"].path).backend.name == "ort"
    (warning,) = caplog.messages
    assert "ONNX Runtime runs it on the CPU; not on the GPU: " in warning
    assert "3 GroupQueryAttention" in warning


def test_onnxruntime_with_cuda_but_no_gpu_runs_on_the_cpu_with_a_warning(bundles, on_cuda, monkeypatch, caplog) -> None:
    monkeypatch.setattr("flamingo_rt.engines.gpu.nvidia_driver.find_gpu", lambda: None)
    assert flamingo_rt.load(bundles["ort"].path).backend.name == "ort"
    (warning,) = caplog.messages
    assert "not on the GPU: no NVIDIA GPU is found" in warning


def test_plain_onnxruntime_lacks_nothing(bundles, caplog) -> None:
    assert flamingo_rt.load(bundles["ort"].path).backend.name == "ort"
    assert not caplog.messages


def test_asked_for_cuda_that_does_not_run_is_an_error(bundles, on_cuda) -> None:
    on_cuda.runtime.available = ["CPUExecutionProvider"]
    with pytest.raises(DependencyError, match="has no CUDA"):
        flamingo_rt.load(bundles["ort-fp16"].path, "ort-cuda")
    with pytest.raises(UsageError, match="the ort-cuda backend runs a bundle"):
        flamingo_rt.load(bundles["ort"].path.parent / "checkpoint", "ort-cuda")
