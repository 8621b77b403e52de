"""Mistakes that the stand-ins for CUDA, TensorRT and ONNX Runtime notice: a runner that makes one fails its tests."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from runners import LOWERINGS

from flamingo_rt.engines.tensorrt.tensorrt_session import Profile
from flamingo_rt.errors import DataError

PROFILE = "flamingo_rt.engines.tensorrt.tensorrt_session.Profile"
# What a stand-in finds when Python frees its memory is a warning otherwise.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


def generate_after(monkeypatch, runner, lowering: str, place: str, mistake) -> None:
    """Let the runner make a mistake, and generate with it."""
    monkeypatch.setattr(place, mistake)
    runner.model(lowering).generate("Output:", max_new_tokens=4, speculation=0, beams=2).result()


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_a_cache_that_is_not_zeroed_is_noticed(runner, monkeypatch, lowering) -> None:
    with pytest.raises(AssertionError, match="holds NaN"):
        generate_after(
            monkeypatch, runner, lowering, "flamingo_rt.engines.gpu.cuda.Cuda.zero", lambda self, memory: None
        )


def test_a_missing_shape_is_noticed(runner, monkeypatch) -> None:
    set_shapes = Profile.set_shapes

    def forgetful(self, shapes) -> None:
        set_shapes(self, {name: shape for name, shape in shapes.items() if name != "cache_length"})

    with pytest.raises((AssertionError, KeyError), match="cache_length"):
        generate_after(monkeypatch, runner, "tensorrt", f"{PROFILE}.set_shapes", forgetful)


def test_memory_that_was_freed_is_noticed(runner, monkeypatch) -> None:
    bind = Profile.bind

    def dangling(self, addresses) -> None:
        freed = runner.gpu.allocate(4096)
        runner.gpu.free(freed)
        bind(self, {**addresses, **({"input_ids": freed} if "input_ids" in addresses else {})})

    with pytest.raises(AssertionError, match="are not allocated, or were freed"):
        generate_after(monkeypatch, runner, "tensorrt", f"{PROFILE}.bind", dangling)


def test_memory_that_is_not_pinned_in_a_captured_step_is_noticed(runner, monkeypatch, text) -> None:
    monkeypatch.setattr("flamingo_rt.engines.gpu.cuda.Cuda.pinned", lambda self, shape, dtype: np.empty(shape, dtype))
    with pytest.raises(AssertionError, match="pageable memory in a graph"):
        runner.model("tensorrt").generate(text, max_new_tokens=6, speculation=0, repetition_penalty=1.1).result()


# ONNX Runtime on CUDA


def test_an_input_bound_where_it_is_not_read_is_noticed(on_cuda, monkeypatch) -> None:
    """Lengths on the device are copied while they are bound, before they are there."""
    monkeypatch.setattr("flamingo_rt.engines.ort_gpu.HOST_MEMORY", "nowhere")
    with pytest.raises(RuntimeError, match="total_sequence_length"):
        on_cuda.model("ort-fp16").generate("Output:", max_new_tokens=2).result()


def test_a_run_that_waits_by_itself_is_noticed(on_cuda, text, monkeypatch) -> None:
    monkeypatch.setattr(on_cuda.runtime, "RunOptions", lambda: SimpleNamespace(
        entries={}, add_run_config_entry=lambda key, value: None))
    with pytest.raises(DataError):
        on_cuda.model("ort-fp16").generate(text, max_new_tokens=2).result()


def test_a_cache_that_is_not_zeroed_is_noticed_on_cuda(on_cuda, monkeypatch) -> None:
    monkeypatch.setattr("flamingo_rt.engines.gpu.cuda.Cuda.zero", lambda self, memory: None)
    with pytest.raises(AssertionError, match="holds NaN"):
        on_cuda.model("ort-fp16").generate("Output:", max_new_tokens=2).result()
