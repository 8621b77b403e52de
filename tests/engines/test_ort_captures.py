"""Steps that ONNX Runtime captures as CUDA graphs, on the stand-ins: the annotation id of each run, and runs as they
are where nothing can be captured.

`fake_onnxruntime.py` says what the stand-in checks: above all, that a run is bound as the captured run of its id was.
"""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest
from runners import OnCuda, assert_same, model_of

from flamingo_rt.contract import LANGUAGE_MODEL
from flamingo_rt.engines import ort_captures
from flamingo_rt.engines.ort_captures import MOST_CAPTURED, SKIPPED, CapturedSteps
from flamingo_rt.engines.ort_gpu import CudaProvider, OrtGpuBackend
from flamingo_rt.errors import DataError
from flamingo_rt.runtime.decoder import Decoder, Row
from flamingo_rt.runtime.model import Model

# What a stand-in finds when Python frees its memory is a warning otherwise.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")

# As ONNX Runtime 1.31.1 says it.
REFUSED = (
    "[ONNXRuntimeError] : 1 : FAIL : This session cannot use the graph capture feature as requested by the user  as "
    "all compute graph nodes have not been partitioned to the CUDAExecutionProvider"
)
NOT_CAPTURED = "CUDA failure 900: operation not permitted when stream is capturing"


@pytest.fixture
def model(on_cuda) -> Model:
    on_cuda.runtime.on_host = set()  # graphs of this lowering read nothing there
    return on_cuda.model("tensorrt")


def ids_of(on_cuda: OnCuda) -> list[str]:
    """The annotation ids of the language model's runs so far, in order."""
    return next(session for session in reversed(on_cuda.runtime.sessions) if session.graph == LANGUAGE_MODEL).ids


def warnings(caplog) -> list[str]:
    return [text for text in caplog.messages if "not captured as CUDA graphs" in text]


# Ids


def test_prompts_are_skipped_and_steps_have_an_id(model, on_cuda, text) -> None:
    model.generate(text, max_new_tokens=5).result()
    assert ids_of(on_cuda) == [SKIPPED, "1", "1", "1", "1"]


def test_pictures_are_encoded_in_sessions_that_capture_nothing(model, on_cuda, pictures) -> None:
    model.generate([pictures[0], "Output:"], max_new_tokens=3).result()
    assert [session.captures for session in on_cuda.runtime.sessions] == [
        session.graph == LANGUAGE_MODEL for session in on_cuda.runtime.sessions
    ]


def test_the_next_answer_replays_the_same_id(model, on_cuda, ort, pictures) -> None:
    for picture in pictures[:3]:
        found, expected = (each.generate([picture, "Output:"], max_new_tokens=6).result() for each in (model, ort))
        assert_same([found], [expected])
    assert set(ids_of(on_cuda)) == {SKIPPED, "1"}


def test_another_number_of_rows_and_another_cache_have_other_ids(model, on_cuda, ort) -> None:
    """An id that returned with the cache's old address would be replayed as it was: the stand-in checks each run."""
    queries = ["Output: a", "Question: how many? Answer:", "two"]
    seen = []
    for prompts in (queries[:1], queries[:2], queries, queries[:2]):
        before = len(ids_of(on_cuda))
        found, expected = (each.generate_batch(prompts, max_new_tokens=6) for each in (model, ort))
        assert_same(found, expected)
        seen += set(ids_of(on_cuda)[before:]) - {SKIPPED}
    assert len(seen) == 4, "one for each answer"
    assert len(set(seen[:3])) == 3
    assert seen[3] not in (seen[0], seen[2])


@pytest.mark.parametrize("options", [
    {}, {"speculation": 4}, {"temperature": 1.0, "seed": 3}, {"beams": 3}], ids=str)
def test_every_way_to_choose_tokens_gives_those_of_the_cpu(model, on_cuda, ort, pictures, options) -> None:
    parts = [pictures[0], "Output: a red", pictures[1], "Output:"]
    for _ in range(2):
        found, expected = (each.generate(parts, max_new_tokens=10, **options).result() for each in (model, ort))
        assert_same([found], [expected])
    assert set(ids_of(on_cuda)) > {SKIPPED}


def test_steps_of_several_tokens_are_skipped(model, on_cuda) -> None:
    with Decoder(model.backend, model.config, 1, 40) as decoder:
        decoder.prefill([Row(np.arange(65, 69), np.zeros(4, dtype=np.int64), [])])
        for tokens in ([70, 71], [72], [73, 74]):
            decoder.extend(np.array(tokens))
    assert ids_of(on_cuda) == [SKIPPED, SKIPPED, "1", SKIPPED]


def test_equal_shapes_and_addresses_have_equal_ids_in_a_thread() -> None:
    steps = CapturedSteps()
    assert [steps.id_of(bound) for bound in ("a", "b", "a", ("a", 1), "b")] == ["1", "2", "1", "3", "2"]
    other: list[str] = []
    thread = threading.Thread(target=lambda: other.append(steps.id_of("a")))
    thread.start()
    thread.join()
    assert other == ["4"]


def test_the_number_of_captured_graphs_is_bounded(model, on_cuda, ort, monkeypatch) -> None:
    steps = CapturedSteps()
    assert [steps.id_of(bound) for bound in range(MOST_CAPTURED + 3)][MOST_CAPTURED:] == [SKIPPED] * 3
    assert steps.id_of(0) == "1"
    model.backend._captured._most = 2
    for rows in (1, 2, 3, 1):
        found, expected = (each.generate_batch(["Output: a"] * rows, max_new_tokens=6) for each in (model, ort))
        assert_same(found, expected)
    (session,) = [session for session in on_cuda.runtime.sessions if session.graph == LANGUAGE_MODEL]
    assert len(session.captured) == 2


# Runs as they are


def test_a_session_that_cannot_capture_is_made_again_with_one_warning(on_cuda, ort, text, caplog) -> None:
    on_cuda.runtime.on_host, on_cuda.runtime.capture_refused = set(), RuntimeError(REFUSED)
    with caplog.at_level(logging.WARNING):
        model = on_cuda.model("tensorrt")
        found, expected = (each.generate(text, max_new_tokens=5).result() for each in (model, ort))
    assert_same([found], [expected])
    (said,) = warnings(caplog)
    assert "all compute graph nodes have not been partitioned to the CUDAExecutionProvider" in said
    assert not any(session.captures for session in on_cuda.runtime.sessions)


def test_another_error_of_loading_is_not_tried_again(on_cuda) -> None:
    on_cuda.runtime.on_host, on_cuda.runtime.capture_refused = set(), RuntimeError("the file is damaged")
    with pytest.raises(DataError, match=r"cannot load .*: the file is damaged; run it with --backend ort"):
        on_cuda.backend("tensorrt")


def test_a_step_that_cannot_be_captured_is_run_as_it_is_with_one_warning(on_cuda, ort, text, caplog) -> None:
    on_cuda.runtime.on_host, on_cuda.runtime.capture_failure = set(), RuntimeError(NOT_CAPTURED)
    model = on_cuda.model("tensorrt")
    with caplog.at_level(logging.WARNING):
        for rows in (1, 2, 1):
            found, expected = (each.generate_batch([text] * rows, max_new_tokens=5) for each in (model, ort))
            assert_same(found, expected)
    (said,) = warnings(caplog)
    assert said.endswith(NOT_CAPTURED)
    assert ids_of(on_cuda)[2:] == [SKIPPED] * (len(ids_of(on_cuda)) - 2)


def test_a_run_that_fails_after_it_was_captured_is_an_error(model, on_cuda, text) -> None:
    pieces = iter(model.generate(text, max_new_tokens=8))
    next(pieces)
    next(pieces)
    on_cuda.runtime.failure = RuntimeError("an illegal memory access was encountered")
    with pytest.raises(DataError, match="cannot run the language_model with CUDA: an illegal memory access"):
        list(pieces)


def test_inputs_that_are_read_in_host_memory_prevent_captures(on_cuda, ort, text, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        model = on_cuda.model("tensorrt")  # the stand-in reads lengths there unless it is told otherwise
        found, expected = (each.generate(text, max_new_tokens=5).result() for each in (model, ort))
    assert_same([found], [expected])
    assert set(ids_of(on_cuda)) == {SKIPPED}
    (said,) = warnings(caplog)
    assert said.endswith("ONNX Runtime reads cache_length in host memory")


def test_graphs_of_the_lowering_ort_are_not_asked_for_captures_and_a_warning_says_why(
    on_cuda, ort_half, text, caplog
) -> None:
    with caplog.at_level(logging.WARNING):
        model = on_cuda.model("ort-fp16")
        found, expected = (each.generate(text, max_new_tokens=5).result() for each in (model, ort_half))
    assert_same([found], [expected])
    assert not any(session.captures for session in on_cuda.runtime.sessions)
    (said,) = warnings(caplog)
    assert "export with --lowering tensorrt, or load with --no-cuda-graphs" in said


@pytest.mark.parametrize("name", ["tensorrt", "ort-fp16"])
def test_without_cuda_graphs_nothing_is_captured_and_nothing_said(on_cuda, caplog, name) -> None:
    if name == "tensorrt":
        on_cuda.runtime.on_host = set()
    with caplog.at_level(logging.WARNING):
        backend = OrtGpuBackend(on_cuda.bundles[name], CudaProvider(), cuda_graphs=False)
        model_of(backend, on_cuda.bundles[name]).generate("Output:", max_new_tokens=4).result()
    assert not any(session.captures for session in on_cuda.runtime.sessions)
    assert not warnings(caplog)


def test_refusals_of_older_versions_are_known_too() -> None:
    old = "This session cannot use the CUDA Graph feature as requested by the user  as the model has control flow nodes"
    assert ort_captures.refuses_captures(RuntimeError(old))
    assert not ort_captures.refuses_captures(RuntimeError("graph is damaged"))
