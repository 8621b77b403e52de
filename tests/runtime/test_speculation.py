"""Guessing ahead: the answer is that of plain greedy decoding whatever is guessed and whatever steps are said to cost,
a text that repeats takes fewer steps, and the same input gives the same bits."""

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recording import RecordingEngine

import flamingo_rt
from flamingo_rt import Image
from flamingo_rt.backend import HostBackend
from flamingo_rt.contract import LANGUAGE_MODEL, graph_specs
from flamingo_rt.model.torch_backend import TorchBackend
from flamingo_rt.runtime.model import Model
from flamingo_rt.runtime.speculation import DISCOUNT, PRIOR, PromptLookup
from flamingo_rt.step_costs import StepCosts

SCENE = Path(__file__).parents[2] / "examples" / "scene.png"

LOGPROBS = {"rtol": 0, "atol": 2e-4}  # float32 logits of about 5, sums in another order
END = "<|endofchunk|>"
FREE = StepCosts(((2, 1.0), (32, 1.0)))  # steps of any size cost the same


@pytest.fixture
def eager(model, config, tokenizer):
    """A fresh model on each backend in turn, whose guesses cost nothing."""
    return Model(model.backend, config, tokenizer, step_costs=FREE)


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


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.1}, {"stop": ("a", "é")}], ids=str)
@pytest.mark.parametrize("name", ["text alone", "one picture", "shots", "a clip", "repeats itself"])
def test_the_answer_is_that_of_plain_decoding(name, options, eager, prompts):
    plain, guessed = both(eager, prompts[name], max_new_tokens=50, **options)
    assert_same(plain, guessed)
    assert plain.drafted == 0
    assert guessed.steps + guessed.accepted >= len(guessed.tokens) - 1


def test_the_costs_of_steps_change_no_answer(torch_model, config, tokenizer, prompts):
    answers = []
    for seed in range(5):
        ratios = np.random.default_rng(seed).uniform(1.0, 6.0, 3).tolist()
        costs = StepCosts(tuple(zip((2, 4, 8), ratios, strict=True)))
        model = Model(torch_model.backend, config, tokenizer, step_costs=costs)
        answers.append(model.generate(prompts["repeats itself"], max_new_tokens=60).result())
    plain = torch_model.generate(prompts["repeats itself"], max_new_tokens=60, speculation=0).result()
    for answer in answers:
        assert_same(plain, answer)
    assert len({answer.steps for answer in answers}) > 1  # they do change how it was found


def test_the_packaged_models_answer_is_that_of_plain_decoding():
    packaged = flamingo_rt.load(threads=1)
    rng = np.random.default_rng(0)
    shots = []
    for text in ("a red star and a blue cross", "a blue triangle, a dotted purple circle and a blue cross"):
        shots += [Image(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), f"Output: {text}{END}"]
    query = [Image(SCENE), "Output:"]
    for options in ({}, {"prefix": packaged.prompt(shots)}):
        plain, guessed = both(packaged, query, max_new_tokens=40, **options)
        assert_same(plain, guessed)
    assert guessed.accepted > 0  # a shot says the same
    assert guessed.steps < plain.steps


def test_a_text_that_repeats_takes_fewer_steps(eager, prompts):
    plain, guessed = both(eager, prompts["repeats itself"], max_new_tokens=60)
    assert plain.steps == len(plain.tokens) - 1
    assert guessed.steps + guessed.accepted == len(guessed.tokens) - 1
    assert guessed.steps < plain.steps / 3


def test_what_is_streamed_joins_to_the_result(eager, prompts):
    generation = eager.generate(prompts["repeats itself"], max_new_tokens=30)
    assert "".join(generation) == generation.result().text
    assert generation.result().accepted > 0


@pytest.mark.parametrize("limit", range(1, 20))
def test_no_guess_goes_past_the_limit_or_the_cache(limit, flamingo, config, tokenizer, prompts):
    backend = RecordingEngine(TorchBackend(flamingo))  # checks that no step writes behind its cache
    model = Model(backend, config, tokenizer, step_costs=FREE)
    plain, guessed = both(model, prompts["repeats itself"], max_new_tokens=limit)
    assert_same(plain, guessed)
    assert len(guessed.tokens) == limit


def test_no_guess_goes_past_the_context(flamingo, config, tokenizer):
    backend = RecordingEngine(TorchBackend(flamingo))
    plain, guessed = both(Model(backend, config, tokenizer, step_costs=FREE), "z" * (config.language.context - 20))
    assert_same(plain, guessed)
    assert guessed.stop_reason == "context"


class CopyingEngine(HostBackend):
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


def test_an_end_token_in_a_guess_ends_the_answer(config, tokenizer):
    text = [*tokenizer.encode("0123456789zyxwv"), tokenizer.end_of_chunk_id, *tokenizer.encode("ABC")]
    backend = CopyingEngine(text, config)
    model = Model(backend, config, tokenizer, step_costs=FREE)
    result = model.generate(f"0123456789zyxwv{END}ABC0", max_new_tokens=40).result()
    assert (result.text, result.stop_reason) == ("123456789zyxwv", "end_of_chunk")
    assert result.accepted == result.drafted > 0
    assert sum(backend.took[1:]) <= len("123456789zyxwv")  # none spent on what stands behind the end


@pytest.mark.parametrize("options", [{"speculation": 0}, {"temperature": 0.5}, {"beams": 2}], ids=str)
def test_nothing_is_guessed_when_it_is_off_or_not_greedy(options, torch_model, prompts):
    result = torch_model.generate(prompts["repeats itself"], max_new_tokens=20, **options).result()
    assert (result.drafted, result.accepted) == (0, 0)


def test_rows_of_a_batch_guess_nothing(torch_model, prompts):
    results = torch_model.generate_batch([prompts["repeats itself"], prompts["text alone"]], max_new_tokens=20)
    assert [(result.steps, result.drafted) for result in results] == [(19, 0), (19, 0)]


def test_a_step_takes_one_of_a_few_sizes_each_bound_once(flamingo, config, tokenizer, prompts):
    backend = RecordingEngine(TorchBackend(flamingo))
    model = Model(backend, config, tokenizer, step_costs=FREE)
    model.generate(prompts["repeats itself"], max_new_tokens=60, speculation=5).result()
    _, *steps = [bound.inputs["input_ids"].shape[1] for bound in backend.of(LANGUAGE_MODEL)]
    assert len(steps) == len(set(steps)) > 2
    assert set(steps) <= {1, 2, 4, 6}


# The same in every run


def bits(result):
    """Tokens and log-probabilities, exactly, and how they were found."""
    logprobs = tuple(logprob.hex() for logprob in result.logprobs)
    return result.tokens, logprobs, result.stop_reason, result.steps, result.drafted, result.accepted


class MeasuredRun:
    """A fresh model on ONNX Runtime, and the number of tokens of each of its steps."""

    def __init__(self, backend, config, tokenizer) -> None:
        self._backend = RecordingSteps(backend)
        self._model = Model(self._backend, config, tokenizer)

    def answer(self, parts):
        """The answer's `bits`, and the sizes of its steps."""
        self._backend.took.clear()
        result = self._model.generate(parts, max_new_tokens=60).result()
        return bits(result), tuple(self._backend.took)


class RecordingSteps(RecordingEngine):
    """Notes how many tokens each run of the language model takes."""

    def __init__(self, backend) -> None:
        super().__init__(backend)
        self.took = []

    def bind(self, graph, inputs, outputs, constant=()):
        run = super().bind(graph, inputs, outputs, constant)

        def call() -> None:
            if graph == LANGUAGE_MODEL:
                self.took.append(inputs["input_ids"].shape[1])
            run()

        return call


@pytest.fixture
def fresh(ort_model, config, tokenizer):
    """Makes models that have answered nothing."""
    return lambda: MeasuredRun(ort_model.backend, config, tokenizer)


def test_the_same_prompt_gives_the_same_bits_whatever_the_clock_says(fresh, prompts, monkeypatch):
    answers = []
    for seed in range(4):
        readings = itertools.accumulate(np.random.default_rng(seed).exponential(10.0**seed, 10_000).tolist())
        for name in ("perf_counter", "monotonic", "process_time"):
            monkeypatch.setattr(time, name, lambda readings=readings: next(readings))
        answers.append([fresh().answer(prompts[name]) for name in ("shots", "repeats itself")])
    monkeypatch.undo()
    assert answers == answers[:1] * 4
    assert any(drafted > 0 for (*_, drafted, _), _ in answers[0])


def test_a_model_that_has_answered_before_gives_the_bits_of_a_fresh_one(fresh, prompts):
    cold, warm = fresh(), fresh()
    for other in ("text alone", "repeats itself", "a clip"):
        warm.answer(prompts[other])
    for _ in range(2):
        assert warm.answer(prompts["shots"]) == cold.answer(prompts["shots"])


ANSWER_ALONE = """
import json, sys
import flamingo_rt
result = flamingo_rt.load(threads=1).generate(sys.argv[1], max_new_tokens=40).result()
print(json.dumps([list(result.tokens), [each.hex() for each in result.logprobs], result.steps, result.drafted]))
"""


def test_another_process_gives_the_same_bits():
    prompt = f"Output: a red star and a blue cross{END}Output: a blue star and a red cross{END}Output:"
    done = subprocess.run([sys.executable, "-c", ANSWER_ALONE, prompt], capture_output=True, text=True, check=True)
    packaged = flamingo_rt.load(threads=1)
    packaged.generate("Output: a", max_new_tokens=20).result()
    tokens, logprobs, _, steps, drafted, _ = bits(packaged.generate(prompt, max_new_tokens=40).result())
    assert json.loads(done.stdout) == [list(tokens), list(logprobs), steps, drafted]
    assert drafted > 0


# Guesses


def guesses(ids, most, stop_ids=frozenset()):
    return list(itertools.islice(PromptLookup(ids, stop_ids).guesses(), most))


def occurrences(ids, start, end):
    """Tokens that followed earlier occurrences of ``ids[start:end]`` (places counted from the end)."""
    wanted = ids[start:end]
    return [
        ids[place] for place in range(-start, len(ids)) if ids[place + start : place + end if end else place] == wanted
    ]


def guess_slowly(ids):
    """The confidences of all tokens that a context's occurrences have as their likeliest, by searching the row."""
    found = []
    contexts = [(start, end) for start, end in ((-3, -1), (-1, None), (-2, None), (-3, None)) if len(ids) >= -start]
    known = [after for after in (occurrences(ids, *context) for context in contexts) if after]
    for after in known:
        if not found or len(after) != len(found[-1]):
            found.append(after)
    confidences = {}
    for likeliest in {max(after, key=lambda token: (after.count(token), latest(after, token))) for after in found}:
        confidence = 0.0
        for after in found:
            counted = max(after.count(likeliest) - DISCOUNT, 0.0)
            confidence = (counted + PRIOR * confidence) / (len(after) + PRIOR)
        confidences[likeliest] = confidence
    return confidences, len(known)


def latest(after, token):
    """Last place of ``token``."""
    return max(place for place, other in enumerate(after) if other == token)


@given(ids=st.lists(st.integers(0, 4), max_size=30))
def test_a_guess_is_the_surest_token_of_all_that_followed_the_contexts(ids):
    confidences, known = guess_slowly(ids)
    for guess in guesses(ids, 1):
        assert guess.contexts == known
        assert guess.confidence == pytest.approx(max(confidences.values()), abs=1e-12)
        assert confidences[guess.token] == pytest.approx(guess.confidence, abs=1e-12)
    assert bool(guesses(ids, 1)) == bool(confidences)


@given(ids=st.lists(st.integers(0, 4), max_size=30), more=st.lists(st.integers(0, 4), max_size=5))
def test_a_row_that_grew_is_guessed_as_one_that_was_read(ids, more):
    lookup = PromptLookup(ids, {4})
    for token in more:
        lookup.append(token)
    assert list(itertools.islice(lookup.guesses(), 9)) == guesses([*ids, *more], 9, {4})


@given(ids=st.lists(st.integers(0, 4), max_size=30))
def test_a_guess_goes_on_as_if_it_were_right_up_to_an_end_token(ids):
    row = list(ids)
    for guess in guesses(ids, 9, {4}):
        assert 4 not in row[len(ids) :]
        found = PromptLookup(ids, {4})  # the guess is not an occurrence of what it guesses
        last = found._last
        for token in row[len(ids) :]:
            last = [*last, token][-3:]
        assert found._next(last) == guess
        row.append(guess.token)


def test_a_repeated_text_is_repeated_as_long_as_asked():
    assert [guess.token for guess in guesses([9, 1, 2, 1, 2], 7)] == [1, 2, 1, 2, 1, 2, 1]


AN, END_TOKEN = 51, 52


def shots(*phrases):
    """Token ids of captions: "a <colour> <shape>", each ended."""
    return [token for colour, shape in phrases for token in (AN, colour, shape, END_TOKEN)]


def test_a_token_that_always_follows_is_surer_than_one_that_never_did():
    ids = shots((1, 11), (2, 12), (3, 13), (4, 14))
    (first,), (colour,) = guesses(ids, 1), guesses([*ids, AN], 1)
    assert first.token == AN
    assert first.confidence > 2 * colour.confidence
    assert guesses([*ids, AN, 5, 11], 1)[0].token == END_TOKEN


def test_five_occurrences_that_agree_are_surer_than_one_of_a_longer_context():
    once = guesses([7, 8, 9, 4, 5, 6, 7, 8, 9], 1)[0]
    agreed = guesses([1, 2, 5, 1, 2, 6, 1, 2, 7, 1, 2, 8, 1, 2, 9, 1], 1)[0]
    assert once.token == 4
    assert agreed.token == 2
    assert agreed.confidence > once.confidence


def test_the_token_that_follows_other_words_is_guessed_behind_a_new_word():
    ids = [AN, 1, 11, END_TOKEN, AN, 1, 12, END_TOKEN, AN, 1, 13]
    assert guesses(ids, 1)[0].token == END_TOKEN
    assert not guesses([AN, 1, 11], 1)


def test_the_latest_of_equally_frequent_tokens_is_guessed():
    assert guesses([1, 2, 1, 3, 1], 1)[0].token == 3
