"""Generation on both engines against the model without a cache: the same tokens, alone, batched and continued."""

import math
from itertools import pairwise

import numpy as np
import pytest
from recording import RecordingEngine, deliver

from flamingo_rt.backend import HostBackend
from flamingo_rt.contract import LANGUAGE_MODEL, graph_specs
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.model.torch_backend import TorchBackend
from flamingo_rt.runtime.generation_options import GenerationOptions
from flamingo_rt.runtime.model import Model

TOKENS = 8


@pytest.fixture(scope="session")
def prompts(pictures, clip):
    """A prompt of each kind, of different lengths."""
    a, b, c, d, e, _ = pictures
    return {
        "text alone": "Output: a red",
        "one picture": [a, "Output:"],
        "two pictures": [a, "Output: a circle<|endofchunk|>", b, "Output:"],
        "five pictures": [a, b, "x", c, d, "y", e, "Output:"],
        "text before the picture": ["Question: is it blue? ", b, "Answer:"],
        "a clip between pictures": [c, "a", clip, "b", d, "Output:"],
        "a picture alone": [c],
    }


@pytest.fixture(scope="session")
def expected(prompts, naive):
    """Greedy tokens of each prompt by the model without a cache."""
    return {name: tuple(naive(parts, TOKENS)) for name, parts in prompts.items()}


def tokens(results):
    return [result.tokens for result in results]


def test_the_prompts_tell_the_paths_apart(expected):
    assert len(set(expected.values())) == len(expected)
    assert max(len(set(answer)) for answer in expected.values()) >= 4


@pytest.mark.parametrize("name", [
    "text alone", "one picture", "two pictures", "five pictures", "text before the picture", "a clip between pictures",
    "a picture alone",
])
def test_greedy_tokens_are_those_of_the_model_without_a_cache(name, model, prompts, expected):
    assert model.generate(prompts[name], max_new_tokens=TOKENS).result().tokens == expected[name]


@pytest.mark.parametrize("names", [
    ["one picture"],
    ["one picture", "text alone"],
    ["text before the picture", "a picture alone", "five pictures"],
    ["text alone", "a clip between pictures", "two pictures", "one picture"],
])
def test_a_batch_gives_what_each_prompt_gives_alone(names, model, prompts, expected):
    results = model.generate_batch([prompts[name] for name in names], max_new_tokens=TOKENS)
    assert tokens(results) == [expected[name] for name in names]


def test_a_batch_of_texts_alone(model, naive):
    texts = ["Output:", "Question: a longer one. Answer:"]
    assert tokens(model.generate_batch(texts, max_new_tokens=5)) == [tuple(naive(text, 5)) for text in texts]


def test_an_empty_batch_has_no_results(model):
    assert model.generate_batch([]) == []


@pytest.mark.parametrize("with_pictures", [True, False])
def test_a_prefix_and_a_query_give_what_the_whole_prompt_gives(with_pictures, model, naive, pictures):
    # Prefix and query are tokenized apart; behind an end of chunk that makes no difference.
    end = "<|endofchunk|>"
    shots = [pictures[0], f"Output: a cat{end}", pictures[1], f"b{end}"] if with_pictures else [f"Output: a {end}"]
    queries = [[pictures[2], "Output:"], ["and text"], ["text ", pictures[3], "more", pictures[4]]]
    answers = [tuple(naive([*shots, *query], 6)) for query in queries]
    state = model.prompt(shots)
    assert [model.generate(query, prefix=state, max_new_tokens=6).result().tokens for query in queries] == answers
    assert tokens(model.generate_batch(queries, prefix=state, max_new_tokens=6)) == answers
    assert tokens(model.generate_batch(queries[:1], prefix=state, max_new_tokens=6)) == answers[:1]


def test_the_answer_depends_on_the_shots(model, pictures):
    query = [pictures[2], "Output:"]
    answers = {
        model.generate(query, prefix=model.prompt(shots), max_new_tokens=TOKENS).result().tokens
        for shots in ([pictures[0], "a"], [pictures[1], "a"], [pictures[0], "b"])
    }
    assert len(answers) == 3


def test_a_prompt_says_how_many_tokens_it_holds(model, tokenizer, pictures):
    state = model.prompt([pictures[0], "Output:"])
    assert len(state) == 2 + len(tokenizer.encode("Output:"))
    assert model.generate("x", prefix=state, max_new_tokens=1).result().prompt_tokens == len(state) + 1


def test_a_prefix_of_another_model_is_refused(torch_model, ort_model):
    for options in ({}, {"beams": 2}):
        with pytest.raises(UsageError, match="made by another model"):
            torch_model.generate("x", prefix=ort_model.prompt("y"), **options)


# At the end of the context


def text_of(count, tokenizer):
    """A text of exactly ``count`` tokens."""
    text = "z" * count
    assert len(tokenizer.encode(text)) == count
    return text


def test_an_answer_ends_with_the_context(model, tokenizer, naive, config):
    text = text_of(config.language.context - 6, tokenizer)  # 5 places are left: a token starts the text
    result = model.generate(text).result()
    assert (result.stop_reason, result.tokens) == ("context", tuple(naive(text, 5)))


def test_a_row_at_the_end_of_the_context_stops_beside_one_that_goes_on(model, flamingo, tokenizer, naive, config):
    prompts = [text_of(config.language.context - 4, tokenizer), "Output:"]
    results = model.generate_batch(prompts, max_new_tokens=12)
    assert tokens(results) == [tuple(naive(prompts[0], 3)), tuple(naive(prompts[1], 12))]
    assert [result.stop_reason for result in results] == ["context", "max_new_tokens"]
    recording = RecordingEngine(TorchBackend(flamingo))  # checks that no row writes behind its cache
    Model(recording, config, tokenizer).generate_batch(prompts, max_new_tokens=12)
    assert recording.calls[LANGUAGE_MODEL] == 12


def test_a_batch_after_a_prefix_may_end_with_the_context_too(model, tokenizer, naive, config):
    shots = text_of(config.language.context - 20, tokenizer)
    queries = [text_of(16, tokenizer), "x"]
    results = model.generate_batch(queries, prefix=model.prompt(shots), max_new_tokens=12)
    assert tokens(results) == [tuple(naive([shots, queries[0]], 3)), tuple(naive([shots, queries[1]], 12))]
    assert [result.stop_reason for result in results] == ["context", "max_new_tokens"]


def test_a_prompt_that_leaves_no_room_is_refused(model, tokenizer, config):
    context = config.language.context
    result = model.generate(text_of(context - 2, tokenizer)).result()
    assert len(result.tokens) == 1
    message = f"the prompt has {context} tokens, the context is {context}"
    with pytest.raises(DataError, match=message):
        model.generate(text_of(context - 1, tokenizer))
    with pytest.raises(DataError, match=message):
        model.prompt(text_of(context - 1, tokenizer))
    with pytest.raises(DataError, match=message):
        model.generate_batch(["x", text_of(context // 2, tokenizer)],
                             prefix=model.prompt(text_of(context - context // 2 - 1, tokenizer)))


def test_more_visuals_than_the_model_allows_are_refused(model, pictures, config):
    state = model.prompt(pictures)
    assert len(pictures) == config.max_visuals
    for prefix, parts, count in ((None, [*pictures, pictures[0]], 7), (state, pictures[:2], 8)):
        with pytest.raises(DataError, match=f"the prompt has {count} pictures and clips, this model allows 6"):
            model.generate(parts, prefix=prefix)


# Streaming and stopping


def test_what_is_streamed_joins_to_the_result(model, prompts):
    generation = model.generate(prompts["one picture"], max_new_tokens=TOKENS)
    pieces = list(generation)
    assert all(pieces)
    assert len(pieces) > 1
    assert "".join(pieces) == generation.result().text


def test_a_stream_that_was_left_is_finished_by_its_result(model, prompts, expected):
    generation = model.generate(prompts["one picture"], max_new_tokens=TOKENS)
    first = next(iter(generation))
    result = generation.result()
    assert result.tokens == expected["one picture"]
    assert result.text.startswith(first)
    assert list(generation) == []


def test_a_row_that_ends_early_does_not_change_the_others(model, tokenizer, prompts, expected):
    names = ["one picture", "text alone", "five pictures"]
    texts = {name: tokenizer.decode(list(expected[name])) for name in names}
    stop = next(text for text in map(tokenizer.decode, map(list, pairwise(expected["text alone"])))
                if "\ufffd" not in text and not any(text in texts[name] for name in names if name != "text alone"))
    results = model.generate_batch([prompts[name] for name in names], max_new_tokens=TOKENS, stop=(stop,))
    assert [result.stop_reason for result in results] == ["max_new_tokens", "stop_string", "max_new_tokens"]
    assert tokens(results[::2]) == [expected["one picture"], expected["five pictures"]]
    assert results[1].text == texts["text alone"].partition(stop)[0]


class ScriptedEngine(HostBackend):
    """Says fixed tokens: row b's n-th answer token is ``script[b][n]``; ``second`` is the next likely, always."""

    name = "scripted"

    def __init__(self, script, config, second=0) -> None:
        super().__init__(graph_specs(config))
        self.script, self.second, self.said = script, second, 0
        self.vocabulary = config.language.vocab_size

    def bind(self, graph, inputs, outputs, constant=()):
        def call() -> None:
            if graph != LANGUAGE_MODEL:  # the answer is scripted: pictures do not matter
                return
            positions = inputs["cache_length"][:, None] + inputs["logits_index"]
            if not self.said:
                self.first = positions[:, 0].copy()
            logits = np.zeros((*positions.shape, self.vocabulary), np.float32)
            logits[:, :, self.second] = 5.0
            for row, script in enumerate(self.script):
                for index, position in enumerate(positions[row] - self.first[row]):
                    logits[row, index, script[min(position, len(script) - 1)]] = 9.0
            deliver(logits, outputs)
            self.said += 1

        return call


def test_rows_end_at_the_end_of_their_chunk_and_the_batch_with_its_last_row(config, tokenizer):
    script = [[*tokenizer.encode(text), tokenizer.end_of_chunk_id] for text in ("zzz", "z", "zzzzz")]
    backend = ScriptedEngine(script, config)
    results = Model(backend, config, tokenizer).generate_batch(["a", "b", "c"], max_new_tokens=20)
    assert [result.text for result in results] == ["zzz", "z", "zzzzz"]
    assert {result.stop_reason for result in results} == {"end_of_chunk"}
    assert backend.said == 6


def judged(model: Model, usual, parts, **options):
    """The result of a model that was validated with this probability."""
    validated = Model(model.backend, model.config, model.tokenizer, usual_probability=usual)
    return validated.generate(parts, **options).result()


def test_a_caption_less_likely_than_usual_says_so(config, tokenizer, pictures):
    backend = ScriptedEngine([[*tokenizer.encode("zz"), tokenizer.end_of_chunk_id]], config)
    # Each of the three tokens, the last included, has the logit 9 among one of 5 and zeros.
    each = 1 / (1 + math.exp(-4) + (config.language.vocab_size - 2) * math.exp(-9))

    def result(usual, parts, **options):
        backend.said = 0
        return Model(backend, config, tokenizer, usual_probability=usual).generate(parts, **options).result()

    caption = [pictures[0], "Output:"]
    found = result(0.5, caption)
    assert found.probability == pytest.approx(each**3, rel=1e-5)
    assert found.unlike_validation is False
    assert result(each**3 + 1e-4, caption).unlike_validation is True
    # The answer was cut while its probability was above: more tokens could bring it below.
    assert result(each**3 + 1e-4, caption, max_new_tokens=2).unlike_validation is None
    assert result(each**2 + 1e-4, caption, max_new_tokens=2).unlike_validation is True


@pytest.mark.parametrize(("usual", "parts", "options"), [
    (None, "caption", {}), (1.0, "text", {}), (1.0, "question", {}), (1.0, "caption", {"temperature": 0.5}),
    (1.0, "caption", {"repetition_penalty": 1.1}),
], ids=["no record", "text", "question", "temperature", "penalty"])
def test_other_answers_are_not_judged(usual, parts, options, torch_model, pictures):
    prompt = {"caption": [pictures[0], "Output:"], "text": "Output:", "question": [pictures[0], "Question: a Answer:"]}
    assert judged(torch_model, usual, prompt[parts], max_new_tokens=3, **options).unlike_validation is None


def test_each_row_of_a_batch_is_judged_by_its_own_prompt(torch_model, pictures):
    model = Model(torch_model.backend, torch_model.config, torch_model.tokenizer, usual_probability=1.0)
    results = model.generate_batch(["Output:", [pictures[0], "Output:"]], max_new_tokens=3)
    assert [result.unlike_validation for result in results] == [None, True]


def test_a_caption_after_shots_is_not_judged(torch_model, pictures):
    model = Model(torch_model.backend, torch_model.config, torch_model.tokenizer, usual_probability=1.0)
    shot, query = [pictures[1], "Output: a<|endofchunk|>"], [pictures[0], "Output:"]
    assert model.generate(query, max_new_tokens=3).result().unlike_validation is True
    assert model.generate([*shot, *query], max_new_tokens=3).result().unlike_validation is None
    assert model.generate(query, prefix=model.prompt(shot), max_new_tokens=3).result().unlike_validation is None


def test_too_many_pictures_are_shots_only_where_there_are_shots(torch_model, pictures, config):
    many = [pictures[0]] * (config.max_visuals + 1)
    with pytest.raises(DataError, match=r"7 pictures and clips, this model allows 6: give fewer$"):
        torch_model.generate([*many, "Output:"])
    with pytest.raises(DataError, match=r"7 pictures and clips, this model allows 6: use fewer shots$"):
        torch_model.generate([pictures[0], "Output: a<|endofchunk|>", *many[1:], "Output:"])
    with pytest.raises(DataError, match=r"7 pictures and clips, this model allows 6: use fewer shots$"):
        torch_model.generate([*many[1:], "Output:"], prefix=torch_model.prompt([pictures[0], "Output: a"]))
    with pytest.raises(DataError, match=r"must hold the answer too: shorten it$"):
        torch_model.generate("z" * 500)


def test_a_result_has_a_logprob_for_each_token_and_the_time_of_each_stage(model, prompts):
    result = model.generate(prompts["one picture"], max_new_tokens=TOKENS).result()
    assert len(result.logprobs) == len(result.tokens)
    assert all(logprob <= 0 for logprob in result.logprobs)
    assert set(result.timings) == {"images", "vision", "resampler", "prefill", "decode"}


# Options


def test_a_drawn_row_does_not_depend_on_its_neighbours(model, prompts):
    options = GenerationOptions(max_new_tokens=TOKENS, temperature=1.5, seed=3)
    first, other, third = prompts["one picture"], prompts["text alone"], prompts["five pictures"]
    answers = [model.generate_batch([first, neighbour], options=options)[0].tokens for neighbour in (other, third)]
    assert answers[0] == answers[1] == model.generate(first, options=options).result().tokens
    assert answers[0] != model.generate(first, options=options, seed=4).result().tokens


def test_the_repetition_penalty_counts_the_prefix(config, tokenizer):
    (z,), (other,) = tokenizer.encode("z"), tokenizer.encode("w")
    model = Model(ScriptedEngine([[z]], config, second=other), config, tokenizer)
    answers = [
        model.generate("x", prefix=model.prompt(shots), max_new_tokens=1, repetition_penalty=10.0).result().text
        for shots in ("y", "z")
    ]
    assert answers == ["z", "w"]


def test_an_unknown_option_is_named_with_the_known_ones(model):
    with pytest.raises(UsageError, match="unknown generation option 'top_q'; known: max_new_tokens, temperature"):
        model.generate("x", top_q=3)


def test_an_option_out_of_range_is_named_before_anything_runs(model):
    with pytest.raises(UsageError, match="top_k is -1"):
        model.generate("x", top_k=-1)


def test_keyword_arguments_go_before_the_options_given(model, prompts, expected):
    options = GenerationOptions(max_new_tokens=2)
    assert model.generate(prompts["one picture"], options=options).result().tokens == expected["one picture"][:2]
    result = model.generate(prompts["one picture"], options=options, max_new_tokens=3).result()
    assert result.tokens == expected["one picture"][:3]


def test_the_same_generation_twice_is_the_same(model, prompts):
    # Steps guess more or fewer tokens by the time that steps took, which changes the last bits of the sums.
    options = {"max_new_tokens": 4, "speculation": 0}
    first, second = (model.generate(prompts["two pictures"], **options).result() for _ in range(2))
    np.testing.assert_array_equal(first.logprobs, second.logprobs)


def test_the_same_generation_twice_is_the_same_but_for_rounding_with_guesses(model, prompts):
    first, second = (model.generate(prompts["two pictures"], max_new_tokens=12).result() for _ in range(2))
    assert first.tokens == second.tokens
    np.testing.assert_allclose(first.logprobs, second.logprobs, rtol=0, atol=1e-4)


class NanEngine(HostBackend):
    """Passes everything on, and puts a number that is none into the logits."""

    name = "nan"

    def __init__(self, backend, value):
        super().__init__(backend.specs)
        self._backend, self._value = backend, value

    def bind(self, graph, inputs, outputs, constant=()):
        run = self._backend.bind(graph, inputs, outputs, constant)

        def call():
            run()
            if graph == LANGUAGE_MODEL:
                outputs["logits"][..., 3] = self._value

        return call


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("options", [
    {}, {"speculation": 4}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}, {"temperature": 1.0, "top_k": 2},
    {"beams": 3}, {"beams": 3, "repetition_penalty": 2.0}, {"repetition_penalty": 2.0},
], ids=str)
def test_logits_that_are_no_numbers_are_an_error_and_not_a_token(options, value, flamingo, config, tokenizer):
    model = Model(NanEngine(TorchBackend(flamingo), value), config, tokenizer)
    with pytest.raises(DataError, match=rf"logits are not numbers .*the largest is {value}\).* or import it again"):
        model.generate("x", max_new_tokens=3, **options).result()


def test_choices_are_not_ranked_by_logits_that_are_no_numbers(flamingo, config, tokenizer):
    model = Model(NanEngine(TorchBackend(flamingo), np.nan), config, tokenizer)
    with pytest.raises(DataError, match="logits are not numbers"):
        model.score("x", ["yes", "no"])
