"""Backends on GPUs (stand-ins that compute with ONNX Runtime) against what ONNX Runtime recorded."""

from __future__ import annotations

import pytest
from runners import LIMITS, LOWERINGS, OnCuda, Runner

from flamingo_rt.contract import GRAPHS, Limits
from flamingo_rt.export.checks.recording import Recording
from flamingo_rt.runtime.model import Model
from flamingo_rt.runtime.reference_outputs import ReferenceOutputs
from flamingo_rt.runtime.verification import verify

TOLERANCE = dict.fromkeys(GRAPHS, 1e-4)


@pytest.fixture(scope="module")
def reference(ort: Model) -> ReferenceOutputs:
    recording = Recording(ort.config, ort.tokenizer)
    recording.encode(ort.backend)
    return recording.answer(ort.backend)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_engines_compute_what_was_recorded(runner: Runner, reference: ReferenceOutputs, lowering: str) -> None:
    backend = runner.backend(lowering)
    assert backend.limits == LIMITS
    found = verify(backend, runner.bundles[lowering].config, reference, TOLERANCE)
    assert found.passed
    assert found.compared_tokens > 100
    assert found.left_out == ()


def test_prompts_beyond_the_engines_limits_are_left_out(runner: Runner, reference: ReferenceOutputs) -> None:
    limits = Limits(batch=1, tokens=64, visuals=1, frames=1, capacity=96)
    found = verify(runner.backend("tensorrt", limits=limits), runner.bundles["tensorrt"].config, reference, TOLERANCE)
    assert found.passed
    assert found.left_out == ("several pictures", "clip")


def test_onnx_runtime_on_a_gpu_computes_what_was_recorded(on_cuda: OnCuda, reference: ReferenceOutputs) -> None:
    backend = on_cuda.backend("ort")
    assert backend.limits is None
    assert verify(backend, on_cuda.bundles["ort"].config, reference, TOLERANCE).passed
