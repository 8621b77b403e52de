"""Beam search against one that computes everything anew: on the model, and on random chains for the rules."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recording import RecordingEngine
from slow_beams import search_slowly

from flamingo_rt.backend import HostBackend
from flamingo_rt.contract import LANGUAGE_MODEL, RESAMPLER, VISION_ENCODER, graph_specs, layer_parts, past_name
from flamingo_rt.errors import UsageError
from flamingo_rt.model.torch_backend import TorchBackend
from flamingo_rt.processing.preprocess import visual_pixels
from flamingo_rt.processing.prompt import build_prompt
from flamingo_rt.runtime.generation_options import GenerationOptions
from flamingo_rt.runtime.model import Model
from flamingo_rt.runtime.sampling import log_softmax, penalise_repetition

TOKENS = 6


@pytest.fixture(scope="session")
def next_logprobs(flamingo, tokenizer, config):
    """Log-probabilities after a prompt and more tokens, by the model without a cache; those of the same tokens, which
    several searches and engines ask for, once."""

    @functools.cache
    def of_parts(parts, penalty):
        prompt = build_prompt(parts, tokenizer)
        keys = values = None
        with torch.no_grad():
            if prompt.visuals:
                latents = [flamingo.encode(torch.from_numpy(visual_pixels(v, config))[None]) for v in prompt.visuals]
                pairs = [flamingo.cross_attention.keys_values(each) for each in latents]
                keys = [torch.cat(layer, dim=2) for layer in zip(*(keys for keys, _ in pairs), strict=True)]
                values = [torch.cat(layer, dim=2) for layer in zip(*(values for _, values in pairs), strict=True)]

        @functools.cache
        @torch.no_grad()
        def logprobs(*tokens):
            ids = [*prompt.input_ids.tolist(), *tokens]
            media_index = [*prompt.media_index.tolist(), *[int(prompt.media_index[-1])] * len(tokens)]
            logits = flamingo.decode(
                torch.tensor([ids]), torch.arange(len(ids))[None], torch.tensor([media_index]), keys, values
            )
            scores = log_softmax(logits[0, -1].numpy())
            seen = np.isin(np.arange(len(scores)), ids)
            return penalise_repetition(scores, seen, penalty)

        return lambda tokens: logprobs(*tokens)

    return lambda parts, penalty=1.0: of_parts(tuple(parts) if isinstance(parts, list) else parts, penalty)


@pytest.fixture(scope="session")
def slowly(next_logprobs, tokenizer):
    """The answer of a prompt by the slow search."""

    def answer(parts, beams=3, length_penalty=1.0, limit=TOKENS, penalty=1.0, stop=()):
        def ends(tokens):
            return any(text in tokenizer.decode(tokens) for text in stop)

        return tuple(
            search_slowly(next_logprobs(parts, penalty), tokenizer.stop_ids, beams, length_penalty, limit, ends)
        )

    return answer


def searched(model, parts, **options):
    """The answer of a prompt by the model."""
    return model.generate(parts, **{"max_new_tokens": TOKENS, "beams": 3, **options}).result()


@pytest.mark.parametrize("beams", [2, 3, 5])
@pytest.mark.parametrize("name", ["text alone", "two pictures", "a clip between pictures"])
def test_the_answer_is_that_of_a_search_without_a_cache(name, beams, model, pictures, clip, slowly):
    a, b, *_ = pictures
    parts = {
        "text alone": "Output: a red",
        "two pictures": [a, "Output: a circle<|endofchunk|>", b, "Output:"],
        "a clip between pictures": [a, "a", clip, "b", b, "Output:"],
    }[name]
    assert searched(model, parts, beams=beams).tokens == slowly(parts, beams)


def test_the_search_finds_what_greedy_does_not(model, pictures, slowly):
    parts = [pictures[1], "Output:"]
    greedy, found = searched(model, parts, beams=1), searched(model, parts)
    assert found.tokens == slowly(parts) != greedy.tokens
    assert sum(found.logprobs) > sum(greedy.logprobs)


def test_the_logprobs_are_those_of_the_answers_tokens(model, pictures, next_logprobs):
    parts = [pictures[0], "Output:"]
    found, logprobs = searched(model, parts, repetition_penalty=1.5), next_logprobs(parts)
    expected = [logprobs(found.tokens[:n])[token] for n, token in enumerate(found.tokens)]
    np.testing.assert_allclose(found.logprobs, expected, rtol=0, atol=2e-4)  # float32 logits of about 5


def test_a_prefix_changes_nothing(model, pictures, slowly):
    shots, query = [pictures[0], "Output: a cat<|endofchunk|>"], [pictures[1], "Output:"]
    assert searched(model, query, prefix=model.prompt(shots)).tokens == slowly([*shots, *query])


def test_a_batch_is_searched_row_by_row(model, pictures, slowly):
    prompts = ["Output: a red", [pictures[0], "Output:"], [pictures[1], pictures[0], "x"]]
    prefix = "Question:<|endofchunk|>"
    found = model.generate_batch(prompts, prefix=model.prompt(prefix), beams=3, max_new_tokens=4)
    assert [each.tokens for each in found] == [
        slowly([prefix, *([parts] if isinstance(parts, str) else parts)], limit=4) for parts in prompts
    ]
    assert [each.steps for each in found] == [3, 3, 3]


def test_a_repetition_penalty_acts_on_every_beam(model, pictures, slowly):
    parts = [pictures[0], "Output:"]
    found = searched(model, parts, repetition_penalty=1.3)
    assert found.tokens == slowly(parts, penalty=1.3) != slowly(parts)


def test_a_stop_text_ends_a_beam_as_an_end_token_does(model, pictures, tokenizer, slowly):
    parts = [pictures[0], "Output:"]
    whole = tokenizer.decode(list(slowly(parts)))
    stop = next(character for character in whole[1:] if character.isascii())
    found = searched(model, parts, stop=(stop,))
    assert found.tokens == slowly(parts, stop=(stop,))
    assert stop not in found.text
    assert found.stop_reason in ("stop_string", "max_new_tokens")


def test_the_search_ends_with_the_context(model, config, slowly):
    text = "z" * (config.language.context - 6)  # 5 places are left: a token starts the text
    found = searched(model, text, max_new_tokens=64)
    assert (found.stop_reason, found.tokens) == ("context", slowly(text, limit=5))


def test_the_text_comes_at_the_end_of_the_search(model, pictures):
    generation = model.generate([pictures[0], "Output:"], beams=2, max_new_tokens=TOKENS)
    pieces = list(generation)
    assert pieces == [generation.result().text]


def test_beams_are_rows_of_one_decoder_that_was_filled_once(flamingo, config, tokenizer, pictures):
    backend = RecordingEngine(TorchBackend(flamingo))
    found = searched(Model(backend, config, tokenizer), [pictures[0], "a", pictures[1], "Output:"])
    assert backend.calls == {VISION_ENCODER: 1, RESAMPLER: 1, LANGUAGE_MODEL: TOKENS}
    assert found.steps == TOKENS - 1
    prefill, step = backend.of(LANGUAGE_MODEL)  # bound once each
    for bound, rows in ((prefill, 1), (step, 3)):
        assert {bound.inputs[past_name(*part)].shape[0] for part in layer_parts(config.language.layers)} == {rows}


def test_beams_and_a_temperature_exclude_each_other():
    with pytest.raises(UsageError, match=r"beams is 3 and temperature 0.7: .* leave one out"):
        GenerationOptions(beams=3, temperature=0.7)


# The rules, on chains: the next token's probabilities depend on the last token alone, and answers end.


class ChainEngine(HostBackend):
    """Logits by the last token, ``table`` [vocab, vocab]; the cache stays empty."""

    name = "chain"

    def __init__(self, table, config) -> None:
        super().__init__(graph_specs(config))
        self.table = table

    def bind(self, graph, inputs, outputs, constant=()):
        def call() -> None:
            rows = np.arange(len(inputs["input_ids"]))[:, None]
            outputs["logits"][:] = self.table[inputs["input_ids"][rows, inputs["logits_index"]]]

        return call


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10_000), beams=st.integers(2, 5), length_penalty=st.sampled_from([-1.0, 0.0, 0.6, 1.0, 2.0]),
    limit=st.integers(1, 9), ending=st.floats(-2, 6), penalty=st.sampled_from([1.0, 1.2]),
    stop=st.sampled_from([(), ("a",), ("e", "s")]),
)
def test_ends_are_ranked_as_by_the_slow_search(
    seed, beams, length_penalty, limit, ending, penalty, stop, config, tokenizer
):
    rng = np.random.default_rng(seed)
    vocab = config.language.vocab_size
    table = (3 * rng.standard_normal((vocab, vocab))).astype(np.float32)
    table[:, list(tokenizer.stop_ids)] += ending
    prompt = build_prompt("Output:", tokenizer).input_ids

    def logprobs(tokens):
        ids = [*prompt.tolist(), *tokens]
        return penalise_repetition(log_softmax(table[ids[-1]]), np.isin(np.arange(vocab), ids), penalty)

    expected = search_slowly(
        logprobs, tokenizer.stop_ids, beams, length_penalty, limit,
        lambda tokens: any(text in tokenizer.decode(tokens) for text in stop),
    )
    model = Model(ChainEngine(table, config), config, tokenizer)
    found = model.generate(
        "Output:", beams=beams, length_penalty=length_penalty, max_new_tokens=limit, repetition_penalty=penalty,
        stop=stop,
    ).result()
    assert list(found.tokens) == expected


def test_a_length_penalty_above_one_favours_longer_answers(config, tokenizer):
    vocab, end = config.language.vocab_size, tokenizer.end_of_chunk_id
    (z,) = tokenizer.encode("z")
    table = np.full((vocab, vocab), -20.0, dtype=np.float32)
    table[:, z], table[:, end] = 0.5, 0.0
    model = Model(ChainEngine(table, config), config, tokenizer)
    lengths = [len(searched(model, "x", length_penalty=value, max_new_tokens=5).tokens) for value in (0.0, 1.0, 2.0)]
    assert lengths[0] == 0 < lengths[2]
    assert lengths == sorted(lengths)


def test_every_token_may_end_an_answer(config, tokenizer):
    vocab = config.language.vocab_size
    table = np.full((vocab, vocab), -np.inf, dtype=np.float32)
    table[:, tokenizer.end_of_chunk_id] = 0.0
    found = searched(Model(ChainEngine(table, config), config, tokenizer), "x")
    assert (found.text, found.stop_reason, found.steps) == ("", "end_of_chunk", 0)
