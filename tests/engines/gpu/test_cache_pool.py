"""Answers one after the other on the stand-in for a GPU: the second finds the cache and the steps of the first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from runners import LOWERINGS, assert_same

from flamingo_rt.contract import LANGUAGE_MODEL
from flamingo_rt.engines.gpu import cache_pool

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


def captures(gpu) -> int:
    return len(gpu.called("begin capture"))


def test_the_next_answers_step_is_neither_bound_nor_captured_again(runner, gpu, pictures, ort) -> None:
    model = runner.model("tensorrt")
    for index, picture in enumerate(pictures):  # a prompt short enough for the sizes of steps, with another picture
        gpu.calls.clear()
        found, expected = (each.generate([picture, "a"], max_new_tokens=6).result() for each in (model, ort))
        assert_same([found], [expected])
        assert captures(gpu) == (1 if index == 0 else 0)
        runs = [call for call in gpu.called("execute") if call[1] == LANGUAGE_MODEL]
        assert len(runs) == (3 if index == 0 else 1), "the prompt; at first a step and its capture"


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_a_kept_cache_holds_nothing_of_the_answer_before(lowering, runner, ort, pictures) -> None:
    model = runner.model(lowering)
    prompts = [["Output: a red star and a blue square, two circles"], [pictures[0], "Output:"], ["a"]]
    for prompt in (*prompts, *reversed(prompts)):
        found, expected = (each.generate(prompt, max_new_tokens=6).result() for each in (model, ort))
        assert found.tokens == expected.tokens
        np.testing.assert_allclose(found.logprobs, expected.logprobs, rtol=0, atol=1e-3)


def test_answers_at_the_same_time_have_caches_of_their_own(runner, ort, text, pictures) -> None:
    model = runner.model("tensorrt")
    prompts = (text, [pictures[0], "a"])
    expected = [ort.generate(prompt, max_new_tokens=8, speculation=0).result().tokens for prompt in prompts]
    for _ in range(2):
        answers = [model.generate(prompt, max_new_tokens=8) for prompt in prompts]
        running = [iter(answer) for answer in answers]
        while running:
            running = [pieces for pieces in running if next(pieces, None) is not None]
        assert [answer.result().tokens for answer in answers] == expected


def test_a_batch_or_beams_after_one_row_and_back_again(runner, ort, pictures) -> None:
    model = runner.model("tensorrt")
    prompt = [pictures[0], "Output:"]
    for beams, rows in ((1, 1), (3, 1), (1, 2), (1, 1)):
        found, expected = (
            each.generate_batch([prompt] * rows, max_new_tokens=6, beams=beams) for each in (model, ort)
        )
        assert_same(found, expected)


def test_a_cache_of_another_size_takes_the_memory_of_the_kept_one(runner, gpu) -> None:
    model = runner.model("tensorrt")
    model.generate("Output:", max_new_tokens=4).result()
    held, row = gpu.used, 96 * 6 * 64
    assert model.backend.available_bytes() == gpu.memory - held + row
    gpu.memory = held + 3 * row
    model.generate_batch(["Output:"] * 3, max_new_tokens=4)


def test_a_much_larger_cache_is_not_kept_for_a_short_answer(runner, gpu, monkeypatch) -> None:
    backend = runner.backend("tensorrt-classic")
    row = 6 * 64
    for capacity, kept in ((90, 90), (80, 90), (91, 91)):
        backend.cache(1, capacity).close()
        assert gpu.used == kept * row
    monkeypatch.setattr(cache_pool, "SLACK", 8)
    backend.cache(1, 60).close()
    assert gpu.used == 60 * row


def test_a_widened_cache_leaves_no_memory_behind(runner, gpu) -> None:
    backend, row = runner.backend("tensorrt"), 96 * 6 * 64
    cache = backend.cache(1, 96)
    gpu.memory = 4 * row
    wide = cache.expand_rows(3, 5)
    assert gpu.used == 3 * row
    cache.close()
    wide.close()
    wide.close()
    assert gpu.used == 0
    assert backend.available_bytes() == gpu.memory


def test_the_kept_cache_makes_room_for_pictures(runner, gpu, pictures) -> None:
    model = runner.model("tensorrt")
    model.generate_batch(["Output:"] * 4, max_new_tokens=4)
    gpu.memory = gpu.used + 500
    assert model.backend.available_bytes() > 4 * 96 * 6 * 64
    model.generate([pictures[0], "Output:"], max_new_tokens=2).result()


def test_answers_of_several_threads_are_those_of_one(runner, ort, pictures) -> None:
    model = runner.model("tensorrt")
    prompts = [[picture, "Output:"] for picture in pictures]
    expected = [ort.generate(prompt, max_new_tokens=6, speculation=0).result().tokens for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        found = list(pool.map(lambda prompt: model.generate(prompt, max_new_tokens=6).result().tokens, prompts))
    assert found == expected
