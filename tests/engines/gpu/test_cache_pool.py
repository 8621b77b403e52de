"""Answers one after the other on the stand-in for a GPU: the second finds the cache and the steps of the first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fake_tensorrt import FakeEngine
from runners import LOWERINGS, assert_same, without_collector

from flamingo_rt.contract import LANGUAGE_MODEL
from flamingo_rt.engines.gpu import cache_pool
from flamingo_rt.engines.tensorrt.tensorrt_session import Profile
from flamingo_rt.errors import DataError

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


def test_an_expanded_cache_leaves_no_memory_behind(runner, gpu) -> None:
    backend, row = runner.backend("tensorrt"), 96 * 6 * 64
    cache = backend.cache(1, 96)
    gpu.memory = 4 * row
    expanded = cache.expand_rows(3, 5)
    assert gpu.used == 3 * row
    cache.close()
    expanded.close()
    expanded.close()
    assert gpu.used == 0
    assert backend.available_bytes() == gpu.memory


def test_a_cache_that_cannot_be_expanded_is_closed_and_leaves_nothing_behind(runner, gpu) -> None:
    backend, row = runner.backend("tensorrt"), 96 * 6 * 64
    cache = backend.cache(1, 96)
    gpu.memory = 3 * row
    with pytest.raises(DataError, match="cache of 4 rows of 96 tokens"):
        cache.expand_rows(4, 5)
    with pytest.raises(ValueError, match="the cache is closed"):
        cache.buffers()
    cache.close()
    assert gpu.used == 0


def test_a_cache_that_was_closed_twice_is_handed_out_once(runner, gpu) -> None:
    backend = runner.backend("tensorrt")
    cache = backend.cache(1, 96)
    cache.close()
    cache.close()
    first, second = backend.cache(1, 96), backend.cache(1, 96)
    assert not {buffer.address for buffer in first.buffers().values()} & {
        buffer.address for buffer in second.buffers().values()
    }


def test_a_cache_that_nobody_closes_is_freed_with_its_last_reference(runner, gpu) -> None:
    backend = runner.backend("tensorrt")
    with without_collector():
        cache = backend.cache(1, 96)
        assert gpu.used
        del cache
        assert gpu.used == 0


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("options", [{}, {"speculation": 3}, {"temperature": 1.0, "seed": 0}], ids=str)
def test_an_answer_that_is_given_up_gives_its_cache_back(lowering, options, runner, gpu, ort, text) -> None:
    model = runner.model(lowering)
    with without_collector():
        answer = model.generate(text, max_new_tokens=8, **options)
        next(iter(answer))
        assert model.backend.available_bytes() == gpu.memory - gpu.used, "it is in use"
        held = next(iter(gpu.allocations))
        answer.close()
        assert model.backend.available_bytes() > gpu.memory - gpu.used, "the pool has it"
        assert held in gpu.allocations
        del answer
    found, expected = (each.generate(text, max_new_tokens=6).result() for each in (model, ort))
    assert_same([found], [expected])


def test_an_answer_that_nobody_asks_for_takes_no_memory(runner, gpu, text) -> None:
    model = runner.model("tensorrt")
    answer = model.generate(text, max_new_tokens=8)
    assert gpu.used == 0
    del answer


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("options", [{}, {"speculation": 0, "repetition_penalty": 1.1}, {"beams": 2}], ids=str)
@pytest.mark.parametrize("part", ["set_shapes", "bind", "enqueue"])
def test_a_step_that_fails_gives_the_cache_back_for_the_next_answer(
    part, lowering, options, runner, gpu, ort, text, monkeypatch
) -> None:
    model = runner.model(lowering)
    succeeding, calls = getattr(Profile, part), []

    def failing(self, argument) -> None:
        calls.append(argument)
        if len(calls) == 2:  # the prompt is the first
            raise DataError("could not be run")
        succeeding(self, argument)

    with monkeypatch.context() as context:
        context.setattr(Profile, part, failing)
        with pytest.raises(DataError, match="could not be run"):
            model.generate(text, max_new_tokens=8, **options).result()
    assert not gpu.queue
    if "beams" not in options:
        assert model.backend.available_bytes() > gpu.memory - gpu.used, "the pool has it"
    found, expected = (each.generate(text, max_new_tokens=6).result() for each in (model, ort))
    assert_same([found], [expected])


def test_memory_that_is_short_is_taken_from_the_cache_that_nobody_uses(runner, gpu) -> None:
    backend, row = runner.backend("tensorrt"), 96 * 6 * 64
    backend.cache(1, 96).close()
    gpu.memory = row + 1000
    with backend._cuda.current():
        assert backend._pool.allocate(1000, "a test").bytes == 1000
        assert backend._pool.unused_bytes == row, "what fits beside it leaves it alone"
        assert backend._pool.allocate(2000, "a test").bytes == 2000
    assert backend._pool.unused_bytes == gpu.used == 0
    in_use = backend.cache(1, 90)
    with backend._cuda.current(), pytest.raises(DataError, match=r"a test takes .* more"):
        backend._pool.allocate(2000, "a test")
    in_use.close()


def test_a_context_that_tensorrt_cannot_make_is_tried_again_without_the_unused_cache(
    runner, gpu, pictures, monkeypatch
) -> None:
    model = runner.model("tensorrt")
    model.generate("Output:", max_new_tokens=4).result()
    made = FakeEngine.create_execution_context
    # Without pictures no context of the vision encoder was made: it is now, when the cache is gone.
    monkeypatch.setattr(
        FakeEngine, "create_execution_context",
        lambda self: None if model.backend._pool.unused_bytes else made(self),
    )
    assert model.backend._pool.unused_bytes
    model.generate([pictures[0], "Output:"], max_new_tokens=2).result()


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
