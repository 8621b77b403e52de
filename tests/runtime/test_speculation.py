"""Guessing ahead: the answer is that of plain greedy decoding whatever is guessed and however long a step takes, and a
text that repeats takes fewer steps."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from host_engine import HostEngine
from hypothesis import given
from hypothesis import strategies as st
from recording import RecordingEngine

import flamingo_rt
from flamingo_rt import Image
from flamingo_rt.contract import LANGUAGE_MODEL, graph_specs
from flamingo_rt.model.engine import TorchEngine
from flamingo_rt.runtime import speculation
from flamingo_rt.runtime.model import Model
from flamingo_rt.runtime.speculation import LONGEST_MATCH, DraftLength, PromptLookup

LOGPROBS = {"rtol": 0, "atol": 2e-4}  # float32 logits of about 5, sums in another order
END = "<|endofchunk|>"


@pytest.fixture
def clock(monkeypatch):
    """Sets how many seconds each step takes, by the clock that speculation reads."""

    def take(seconds):
        readings = itertools.accumulate(itertools.chain.from_iterable((0.0, each) for each in seconds))
        monkeypatch.setattr(speculation, "time", SimpleNamespace(perf_counter=lambda: next(readings)))

    return take


@pytest.fixture
def steps_cost_the_same(clock):
    """However many tokens they take."""
    clock(itertools.repeat(1.0))


@pytest.fixture(scope="session")
def prompts(pictures, clip):
    """Prompts with pictures, shots and text that repeats."""
    a, b, c, d, e, _ = pictures
    return {
        "text alone": "Output: a red",
        "one picture": [a, "Output:"],
        "shots": [a, f"Output: a red circle{END}", b, f"Output: a red circle and a{END}", c, "Output:"],
        "a clip": [c, "a", clip, "b", d, "Output:"],
        "repeats itself": [e, "Output:"],
    }


def both(model, parts, **options):
    """Plain greedy decoding and with guesses."""
    plain, guessed = (model.generate(parts, speculation=most, **options).result() for most in (0, 7))
    return plain, guessed


def assert_same(plain, guessed):
    assert (guessed.tokens, guessed.text, guessed.stop_reason) == (plain.tokens, plain.text, plain.stop_reason)
    np.testing.assert_allclose(guessed.logprobs, plain.logprobs, **LOGPROBS)


@pytest.mark.usefixtures("steps_cost_the_same")
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.1}, {"stop": ("a", "é")}], ids=str)
@pytest.mark.parametrize("name", ["text alone", "one picture", "shots", "a clip", "repeats itself"])
def test_the_answer_is_that_of_plain_decoding(name, options, model, prompts):
    plain, guessed = both(model, prompts[name], max_new_tokens=50, **options)
    assert_same(plain, guessed)
    assert plain.drafted == 0
    assert guessed.steps + guessed.accepted >= len(guessed.tokens) - 1


def test_the_time_of_a_step_changes_no_answer(torch_model, prompts, clock):
    answers = []
    for seed in range(5):
        clock(np.random.default_rng(seed).uniform(0.1, 9.0, 200))
        answers.append(torch_model.generate(prompts["repeats itself"], max_new_tokens=60).result())
    for answer in answers:
        assert_same(torch_model.generate(prompts["repeats itself"], max_new_tokens=60, speculation=0).result(), answer)
    assert len({answer.steps for answer in answers}) > 1  # it does change how they were found


@pytest.mark.usefixtures("steps_cost_the_same")
def test_the_packaged_models_answer_is_that_of_plain_decoding():
    packaged = flamingo_rt.load(threads=1)
    rng = np.random.default_rng(0)
    shots = []
    for text in ("a red star and a blue cross", "a blue triangle, a dotted purple circle and a blue cross"):
        shots += [Image(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), f"Output: {text}{END}"]
    query = [Image(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "Output:"]
    for options in ({}, {"prefix": packaged.prompt(shots)}):
        plain, guessed = both(packaged, query, max_new_tokens=40, **options)
        assert_same(plain, guessed)
        assert guessed.accepted > 0
        assert guessed.steps < plain.steps


@pytest.mark.usefixtures("steps_cost_the_same")
def test_a_text_that_repeats_takes_fewer_steps(model, prompts):
    plain, guessed = both(model, prompts["repeats itself"], max_new_tokens=60)
    assert plain.steps == len(plain.tokens) - 1
    assert guessed.steps + guessed.accepted == len(guessed.tokens) - 1
    assert guessed.steps < plain.steps / 3


@pytest.mark.usefixtures("steps_cost_the_same")
def test_what_is_streamed_joins_to_the_result(model, prompts):
    generation = model.generate(prompts["repeats itself"], max_new_tokens=30)
    assert "".join(generation) == generation.result().text
    assert generation.result().accepted > 0


@pytest.mark.usefixtures("steps_cost_the_same")
@pytest.mark.parametrize("limit", range(1, 20))
def test_no_guess_goes_past_the_limit_or_the_cache(limit, flamingo, config, tokenizer, prompts):
    engine = RecordingEngine(TorchEngine(flamingo))  # checks that no step writes behind its cache
    plain, guessed = both(Model(engine, config, tokenizer), prompts["repeats itself"], max_new_tokens=limit)
    assert_same(plain, guessed)
    assert len(guessed.tokens) == limit


@pytest.mark.usefixtures("steps_cost_the_same")
def test_no_guess_goes_past_the_context(flamingo, config, tokenizer):
    engine = RecordingEngine(TorchEngine(flamingo))
    plain, guessed = both(Model(engine, config, tokenizer), "z" * (config.language.context - 20))
    assert_same(plain, guessed)
    assert guessed.stop_reason == "context"


class CopyingEngine(HostEngine):
    """Says what followed the last token in ``text`` first, and remembers how many tokens each step took."""

    name = "copying"

    def __init__(self, text, config) -> None:
        super().__init__(graph_specs(config))
        self.next = dict(reversed(list(itertools.pairwise(text))))  # the first of a token that stands twice
        self.took = []

    def bind(self, graph, inputs, outputs, constant=()):
        def call() -> None:
            self.took.append(inputs["input_ids"].shape[1])
            outputs["logits"][:] = 0.0
            for index, position in enumerate(inputs["logits_index"][0]):
                outputs["logits"][0, index, self.next[int(inputs["input_ids"][0, position])]] = 9.0

        return call


@pytest.mark.usefixtures("steps_cost_the_same")
def test_an_end_token_in_a_guess_ends_the_answer(config, tokenizer):
    text = [*tokenizer.encode("0123456789zyxwv"), tokenizer.end_of_chunk_id, *tokenizer.encode("ABC")]
    engine = CopyingEngine(text, config)
    result = Model(engine, config, tokenizer).generate(f"0123456789zyxwv{END}ABC0", max_new_tokens=40).result()
    assert (result.text, result.stop_reason) == ("123456789zyxwv", "end_of_chunk")
    assert result.accepted == result.drafted > 0
    assert sum(engine.took[1:]) <= len("123456789zyxwv")  # none spent on what stands behind the end


@pytest.mark.usefixtures("steps_cost_the_same")
@pytest.mark.parametrize("options", [{"speculation": 0}, {"temperature": 0.5}, {"beams": 2}], ids=str)
def test_nothing_is_guessed_when_it_is_off_or_not_greedy(options, torch_model, prompts):
    result = torch_model.generate(prompts["repeats itself"], max_new_tokens=20, **options).result()
    assert (result.drafted, result.accepted) == (0, 0)


def test_rows_of_a_batch_guess_nothing(torch_model, prompts):
    results = torch_model.generate_batch([prompts["repeats itself"], prompts["text alone"]], max_new_tokens=20)
    assert [(result.steps, result.drafted) for result in results] == [(19, 0), (19, 0)]


@pytest.mark.usefixtures("steps_cost_the_same")
def test_a_step_takes_one_of_a_few_sizes_each_bound_once(flamingo, config, tokenizer, prompts):
    engine = RecordingEngine(TorchEngine(flamingo))
    Model(engine, config, tokenizer).generate(prompts["repeats itself"], max_new_tokens=60, speculation=5).result()
    _, *steps = [bound.inputs["input_ids"].shape[1] for bound in engine.of(LANGUAGE_MODEL)]
    assert sorted(steps) == [1, 2, 4, 6]


# What is guessed


def guess_slowly(ids, most, stop_ids):
    """By searching the tokens from their end."""
    for length in range(min(LONGEST_MATCH, len(ids)), 0, -1):
        for start in range(len(ids) - length - 1, -1, -1):
            if ids[start : start + length] == ids[-length:]:
                text = list(ids)
                for position in range(start + length, start + length + most):
                    text.append(text[position])
                    if text[-1] in stop_ids:
                        break
                return text[len(ids) :], length
    return [], 0


@given(ids=st.lists(st.integers(0, 4), max_size=30), most=st.integers(0, 9))
def test_a_guess_is_what_followed_the_longest_match_last(ids, most):
    assert PromptLookup(ids, {4}).guess(most) == guess_slowly(ids, most, {4})


def test_a_repeated_text_is_repeated_as_long_as_asked():
    assert PromptLookup([9, 1, 2, 1, 2], frozenset()).guess(7) == ([1, 2, 1, 2, 1, 2, 1], 2)


# How much is guessed


def lengths(cost, right, steps=40, most=7, matched=2):
    """The sizes of steps when one of ``size`` tokens takes ``cost(size)`` and guesses are right or not."""
    length, sizes = DraftLength(most), []
    for _ in range(steps):
        sizes.append(length.size(most, matched))
        length.took(sizes[-1], cost(sizes[-1]))
        for _ in range(sizes[-1] if right else 1):
            length.saw(right, matched)
    return sizes


def test_long_steps_that_cost_little_are_taken_when_guesses_are_right():
    assert lengths(lambda size: 1.0 + 0.04 * (size - 1), right=True)[-10:] == [8] * 10


def test_guesses_that_are_wrong_end_the_guessing():
    sizes = lengths(lambda size: 1.0 + 0.1 * (size - 1), right=False)
    assert sizes[-20:] == [1] * 20
    assert sum(size > 1 for size in sizes) <= 10


def test_steps_that_cost_what_their_tokens_would_are_not_taken():
    sizes = lengths(lambda size: size, right=True)
    assert sizes[-20:] == [1] * 20
    assert sum(sizes) < len(sizes) + 5  # nor were the longest tried


def test_the_size_with_the_most_tokens_for_its_time_is_taken():
    cost = {1: 1.0, 2: 1.1, 4: 1.3, 8: 6.0}
    assert lengths(cost.get, right=True)[-10:] == [4] * 10


def test_nothing_is_guessed_before_the_time_of_a_plain_step_is_known():
    assert lengths(lambda size: 1.0, right=True)[:2] == [1, 1]


def test_matches_of_different_lengths_are_judged_apart():
    length = DraftLength(7)
    for size in (1, 1, 2, 2):
        length.took(size, 1.0)
    for _ in range(20):
        length.saw(False, 1)
        length.saw(True, 3)
    assert (length.size(7, 1), length.size(7, 3)) == (1, 4)


def test_guessing_begins_again_when_guesses_would_have_been_right():
    length = DraftLength(7)
    for size in (1, 1, 2, 2):
        length.took(size, 1.0 + 0.1 * (size - 1))
    for _ in range(40):
        length.saw(False, 2)
    assert length.size(7, 2) == 1
    for _ in range(10):
        length.saw(True, 2)
    assert length.size(7, 2) > 1
