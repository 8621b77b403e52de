"""Greedy steps on the stand-ins for a GPU: enqueued before the host has seen the tokens of those before them."""

from __future__ import annotations

import numpy as np
import pytest

from flamingo_rt.contract import LANGUAGE_MODEL
from flamingo_rt.runtime.model import Model

# What a stand-in finds when Python frees its memory is a warning otherwise.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(params=["ort-cuda", "tensorrt", "tensorrt-classic"])
def model(request, on_cuda, runner) -> Model:
    if request.param != "ort-cuda":
        return runner.model(request.param)
    on_cuda.runtime.on_host = set()  # as in graphs of this lowering
    return on_cuda.model("tensorrt")


def steps_and_waits(gpu) -> str:
    """The calls in order: r a run of the language model, e a wait for an event, w one for the whole stream."""
    kinds = {"execute": "r", "launch": "r", "wait for an event": "e", "synchronize": "w"}
    return "".join(
        kinds[call[0]] for call in gpu.calls if call[0] in kinds and (call[0] != "execute" or call[1] == LANGUAGE_MODEL)
    )


def test_a_step_is_enqueued_before_the_one_before_it_is_waited_for(model, gpu, text, monkeypatch) -> None:
    # Without a CUDA graph, each run is counted once.
    monkeypatch.setattr("flamingo_rt.engines.gpu.cuda.Cuda.capture", lambda self, enqueue: None)
    model.generate(text, max_new_tokens=6).result()
    asked = steps_and_waits(gpu)
    assert asked.endswith("wrrerereree"), "after the prompt, two steps; then one for each that is seen, none too many"


def test_answers_end_at_several_lengths_and_begin_again(model, ort, pictures) -> None:
    queries = [[pictures[1], "Output:"], "Question: how many? Answer:", "Output: a"]
    for prompts in (queries, queries[:2], queries):
        found, expected = (each.generate_batch(prompts, max_new_tokens=9) for each in (model, ort))
        assert [result.tokens for result in found] == [result.tokens for result in expected]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-3)


def test_an_answer_that_is_given_up_leaves_nothing_under_way(model, gpu, text) -> None:
    pieces = iter(model.generate(text, max_new_tokens=8))
    next(pieces)
    next(pieces)
    assert gpu.queue, "a step runs ahead"
    gpu.calls.clear()
    pieces.close()
    assert not gpu.queue
    assert steps_and_waits(gpu) == "e", "for the last step, not for what others have put on the stream"


def test_events_are_made_once_for_all_steps_and_answers(model, gpu, text) -> None:
    for tokens in (8, 4):
        model.generate(text, max_new_tokens=tokens).result()
        assert len(gpu.called("make an event")) == model.backend.steps_ahead + 1


def test_where_lengths_are_read_on_the_host_no_step_is_begun_early(on_cuda, gpu, ort_half, text) -> None:
    model = on_cuda.model("ort-fp16")
    assert model.backend.steps_ahead == 0
    found, expected = (each.generate(text, max_new_tokens=6, speculation=0).result() for each in (model, ort_half))
    assert found.tokens == expected.tokens
    assert not gpu.called("wait for an event")
