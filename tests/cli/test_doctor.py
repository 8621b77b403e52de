"""`flamingo-rt doctor`: what works is said to work, what doesn't says why and what to do."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from flamingo_rt import loading
from flamingo_rt.cli.doctor import LIBRARIES
from flamingo_rt.engines.gpu.nvidia_driver import Gpu


@pytest.fixture
def packaged(bundle, monkeypatch):
    """The small bundle in the place of the packaged one."""
    monkeypatch.setattr(loading, "PACKAGED_BUNDLE", bundle)


def test_the_json_has_system_libraries_and_backends(run, packaged) -> None:
    outcome = run("doctor", "--json")
    assert outcome.code == 0
    report = json.loads(outcome.out)
    assert set(report) == {"system", "libraries", "backends", "builders", "cuda", "warnings"}
    assert set(report["system"]) == {"flamingo-rt", "python", "system", "processor", "cores"}
    assert report["system"]["cores"] >= 1
    assert {"numpy", "onnxruntime", "torch"} <= set(report["libraries"])
    assert set(report["backends"]) == {"ort", "ort-cuda", "ort-tensorrt-rtx", "tensorrt", "torch"}
    for name, keys in (("ort", {"works", "detail", "lowerings"}), ("torch", {"works", "detail"})):
        state = report["backends"][name]
        assert state["works"] is True, state["detail"]
        assert set(state) == keys
    assert report["backends"]["ort"]["lowerings"] == ["ort", "tensorrt", "tensorrt-classic"]


def test_the_table_shows_every_backend(run, packaged) -> None:
    outcome = run("doctor")
    assert outcome.code == 0
    for name in ("onnxruntime", "ort", "torch", "yes"):
        assert name in outcome.out


@pytest.mark.parametrize(
    ("backend", "library", "extra"),
    [("ort", "onnxruntime", "cpu"), ("torch", "torch", "export"), ("torch", "safetensors", "export")],
)
def test_a_library_that_cannot_be_imported_is_reported_with_the_extra(
    run, packaged, monkeypatch, backend, library, extra
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    outcome = run("doctor", "--json")
    assert outcome.code == 0
    state = json.loads(outcome.out)["backends"][backend]
    assert state["works"] is False
    assert library in state["detail"]
    assert f"pip install 'flamingo-rt[{extra}]'" in state["detail"]


def test_a_backend_that_is_installed_but_computes_nothing_does_not_work(run, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(loading, "PACKAGED_BUNDLE", tmp_path / "absent")
    state = json.loads(run("doctor", "--json").out)["backends"]["ort"]
    assert state["works"] is False
    assert str(tmp_path / "absent") in state["detail"]


@pytest.mark.parametrize("width", [60, 80])
def test_names_of_libraries_are_whole_in_a_narrow_terminal(run, packaged, monkeypatch, width) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    out = run("doctor").out
    libraries = out[out.index("Libraries"):out.index("Backends")]
    assert "…" not in libraries
    assert all(name in libraries for name in LIBRARIES)


def test_a_library_that_is_not_installed_has_no_version(run, packaged, monkeypatch) -> None:
    monkeypatch.setattr("flamingo_rt.cli.doctor.LIBRARIES", {"numpy": "always", "not-a-distribution": "nothing"})
    assert json.loads(run("doctor", "--json").out)["libraries"]["not-a-distribution"] is None
    assert "not installed" in run("doctor").out


@pytest.mark.parametrize(
    ("version", "lowerings"), [("10.3.0", ["tensorrt-classic"]), ("10.16.0", ["tensorrt", "tensorrt-classic"])]
)
def test_a_builder_is_shown_with_the_lowerings_that_its_version_compiles(
    run, packaged, monkeypatch, version, lowerings
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__=version))
    monkeypatch.setattr("flamingo_rt.engines.gpu.nvidia_driver.find_gpu", lambda: Gpu("Orin", "8.7", 1, True))
    state = json.loads(run("doctor", "--json").out)["builders"]["tensorrt"]
    assert state["works"] is True
    assert f"TensorRT {version}, builds graphs exported with --lowering {lowerings[0]}; Orin" in state["detail"]
    assert state["lowerings"] == lowerings


def test_tensorrt_without_a_gpu_builds_nothing(run, packaged, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0"))
    monkeypatch.setattr("flamingo_rt.engines.gpu.nvidia_driver.find_gpu", lambda: None)
    state = json.loads(run("doctor", "--json").out)["builders"]["tensorrt"]
    assert state["works"] is False
    assert "no NVIDIA GPU" in state["detail"]


def test_a_missing_builder_is_shown_with_its_extra(run, packaged, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    state = json.loads(run("doctor", "--json").out)["builders"]["tensorrt-rtx"]
    assert state["works"] is False
    assert "pip install 'flamingo-rt[tensorrt-rtx]'" in state["detail"]


@pytest.mark.parametrize("backend", ["ort-cuda", "ort-tensorrt-rtx", "tensorrt"])
def test_a_backend_that_needs_a_gpu_says_that_there_is_none(run, packaged, monkeypatch, backend) -> None:
    monkeypatch.setattr("flamingo_rt.engines.gpu.nvidia_driver.find_gpu", lambda: None)
    state = json.loads(run("doctor", "--json").out)["backends"][backend]
    assert state == {
        "works": False, "detail": f"no NVIDIA GPU is found: the {backend} backend needs one and its driver",
    }


def test_two_kinds_of_onnxruntime_at_once_are_pointed_out(run, packaged, monkeypatch) -> None:
    monkeypatch.setattr("flamingo_rt.cli.doctor._version", lambda name: "1.31.1")
    assert "both installed" in run("doctor").out
    (warning,) = json.loads(run("doctor", "--json").out)["warnings"]
    assert "pip uninstall onnxruntime onnxruntime-gpu" in warning
