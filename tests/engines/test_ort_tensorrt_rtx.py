"""TensorRT-RTX as a plugin of ONNX Runtime, on the stand-in: the CPU's tokens, what is asked of it, what is refused."""

from __future__ import annotations

import shutil
import sys
from types import SimpleNamespace

import pytest
from runners import OnCuda, assert_same

from flamingo_rt.bundle import read_bundle
from flamingo_rt.contract import LANGUAGE_MODEL
from flamingo_rt.engines.ort_gpu import RTX_PLUGIN, RtxProvider
from flamingo_rt.errors import DependencyError, UsageError

# What a stand-in finds when Python frees its memory is a warning otherwise.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def with_plugin(on_cuda, monkeypatch) -> OnCuda:
    on_cuda.runtime.available = ["CPUExecutionProvider"]  # plain onnxruntime
    monkeypatch.setitem(sys.modules, RTX_PLUGIN, SimpleNamespace(get_library_path=lambda: "/plugins/rtx.so"))
    return on_cuda


def test_it_gives_the_tokens_of_the_cpu_with_a_cache_of_one_size(with_plugin, ort, pictures) -> None:
    model = with_plugin.model("tensorrt", RtxProvider)
    parts = [pictures[0], "Output: a red", pictures[1], "Output:"]
    for options in ({}, {"beams": 3}):
        found, expected = (each.generate(parts, max_new_tokens=8, **options).result() for each in (model, ort))
        assert_same([found], [expected])
    session = next(session for session in with_plugin.runtime.sessions if session.graph == LANGUAGE_MODEL)
    capacities = {kept[2][2] for name, kept in session.bindings[0].inputs.items() if name.startswith("past")}
    assert capacities == {model.config.language.context}


def test_the_plugin_is_registered_once(with_plugin) -> None:
    for _ in range(2):
        RtxProvider()
    assert len(with_plugin.runtime.plugins) == 1


def test_other_lowerings_are_refused(with_plugin) -> None:
    with pytest.raises(UsageError, match="--lowering ort, which the ort-tensorrt-rtx backend does not run: export"):
        with_plugin.backend("ort", RtxProvider)


def test_without_the_plugin_the_extra_is_named(with_plugin, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, RTX_PLUGIN, None)
    with pytest.raises(DependencyError, match=r"flamingo-rt\[gpu-rtx\]"):
        RtxProvider()


def test_a_plugin_that_does_not_load_says_why(with_plugin, monkeypatch) -> None:
    def refuse(name: str, path: str) -> None:
        raise RuntimeError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(with_plugin.runtime, "register_execution_provider_library", refuse)
    with pytest.raises(DependencyError, match="does not load: libcuda"):
        RtxProvider()


def test_a_plugin_that_runs_on_none_of_the_gpus_says_so(with_plugin, monkeypatch) -> None:
    monkeypatch.setattr(with_plugin.runtime, "register_execution_provider_library", lambda name, path: None)
    with pytest.raises(DependencyError, match="runs on none of the GPUs here"):
        RtxProvider()


@pytest.mark.parametrize("linked", [False, True])
def test_it_is_given_the_graphs_file_or_where_that_is_a_link_its_bytes(with_plugin, tmp_path, text, linked) -> None:
    """It may look for weights beside the file by itself; the CUDA kernels get bytes in any case."""
    source, expected = with_plugin.bundles["tensorrt"].path, with_plugin.model("tensorrt", RtxProvider)
    for file in source.iterdir():
        if linked:
            (tmp_path / file.name).symlink_to(file)
        else:
            shutil.copy(file, tmp_path)
    with_plugin.runtime.sessions.clear()
    model = OnCuda({"tensorrt": read_bundle(tmp_path)}, with_plugin.runtime).model("tensorrt", RtxProvider)
    assert {type(session.model) for session in with_plugin.runtime.sessions} == {bytes if linked else str}
    found = [each.generate(text, max_new_tokens=4).result() for each in (model, expected)]
    assert_same(found[:1], found[1:])
