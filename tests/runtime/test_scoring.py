"""Scores of closed answers against the model without a cache, one token at a time."""

import functools
import math
from dataclasses import replace

import pytest
import torch

from flamingo_rt.config import PromptsConfig
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.processing.preprocess import visual_pixels
from flamingo_rt.processing.prompt import build_prompt
from flamingo_rt.runtime.model import Model

CHOICES = ["a red circle", "yes", "no, it is not", "é"]
LOGPROB = 2e-4  # float32 logits of about 5; up to ten tokens are added up
LOGPROB_SHARE = 1e-5  # relative: a sum of -70 carries a rounding for each token


@pytest.fixture(scope="module")
def slow_score(flamingo, tokenizer, config):
    """Sum of the log-probabilities of a continuation's tokens: the whole prompt again for each. It is
    the same for all engines, and computed once."""

    @functools.cache
    @torch.no_grad()
    def score(parts, continuation):
        prompt = build_prompt(parts, tokenizer)
        keys = values = None
        if prompt.visuals:
            latents = [flamingo.encode(torch.from_numpy(visual_pixels(v, config))[None]) for v in prompt.visuals]
            pairs = [flamingo.cross_attention.keys_values(each) for each in latents]
            keys = [torch.cat(layer, dim=2) for layer in zip(*(keys for keys, _ in pairs), strict=True)]
            values = [torch.cat(layer, dim=2) for layer in zip(*(values for _, values in pairs), strict=True)]
        ids, media_index, total = prompt.input_ids.tolist(), prompt.media_index.tolist(), 0.0
        for token in tokenizer.encode(continuation):
            positions = torch.arange(len(ids))[None]
            logits = flamingo.decode(torch.tensor([ids]), positions, torch.tensor([media_index]), keys, values)
            total += float(logits[0, -1].double().log_softmax(-1)[token])
            ids.append(token)
            media_index.append(media_index[-1])
        return total

    return lambda parts, continuation: score(tuple(parts) if isinstance(parts, list) else parts, continuation)


@pytest.fixture(scope="module")
def prompt(pictures):
    return [pictures[0], "Output: a cat", pictures[1], "Answer:"]


def by_text(scores):
    return {score.text: score.logprob for score in scores}


@pytest.mark.parametrize("name", ["pictures", "text alone"])
def test_a_score_is_the_sum_of_the_tokens_log_probabilities(name, model, prompt, slow_score):
    parts = prompt if name == "pictures" else "Question: is it? Answer:"
    expected = {choice: slow_score(parts, f" {choice}") for choice in CHOICES}
    assert by_text(model.score(parts, CHOICES)) == pytest.approx(expected, rel=LOGPROB_SHARE, abs=LOGPROB)


def test_a_prefix_does_not_change_a_score(model, prompt, slow_score):
    expected = {choice: slow_score(prompt, f" {choice}") for choice in CHOICES}
    scores = model.score(prompt[2:], CHOICES, prefix=model.prompt(prompt[:2]))
    assert by_text(scores) == pytest.approx(expected, rel=LOGPROB_SHARE, abs=LOGPROB)


def test_the_best_comes_first_and_shares_sum_to_one(model, prompt):
    scores = model.score(prompt, CHOICES)
    assert {score.text for score in scores} == set(CHOICES)
    assert [s.logprob for s in scores] == sorted((s.logprob for s in scores), reverse=True)
    assert sum(score.probability for score in scores) == pytest.approx(1, abs=1e-12)
    best, second = scores[:2]
    ratio = torch.tensor(best.logprob - second.logprob, dtype=torch.float64).exp().item()
    assert best.probability / second.probability == pytest.approx(ratio, rel=1e-9)


def test_one_choice_has_all_of_the_share(model, prompt):
    (score,) = model.score(prompt, ["yes"])
    assert score.probability == 1.0


def test_normalized_scores_are_ranked_by_their_mean(model, prompt):
    plain, scores = model.score(prompt, CHOICES), model.score(prompt, CHOICES, normalize=True)
    assert by_text(scores) == pytest.approx(by_text(plain), abs=1e-9)
    means = [score.logprob / len(score.tokens) for score in scores]
    assert means == sorted(means, reverse=True)
    assert [score.text for score in scores] != [score.text for score in plain]
    shares = torch.tensor(means, dtype=torch.float64).softmax(0).tolist()
    assert [score.probability for score in scores] == pytest.approx(shares)


def test_the_total_probability_is_that_of_an_answer_that_begins_with_any_choice(model, prompt):
    scores = model.score(prompt, CHOICES)
    total = sum(math.exp(score.logprob) for score in scores)  # no choice begins with another
    assert [score.total_probability for score in scores] == pytest.approx([total] * len(CHOICES))
    assert 0 < total < 1


@pytest.mark.parametrize("choices", [["yes", "yes, it is"], ["yes, it is", "yes"], ["yes", "yes"]])
def test_a_choice_that_another_begins_with_counts_once(model, prompt, choices):
    scores, (alone,) = model.score(prompt, choices), model.score(prompt, ["yes"])
    assert scores[0].total_probability == pytest.approx(math.exp(alone.logprob), rel=1e-6)


def test_a_choice_is_scored_the_same_whatever_stands_beside_it(model, prompt):
    alone, among = by_text(model.score(prompt, ["yes"])), by_text(model.score(prompt, CHOICES))
    assert alone["yes"] == pytest.approx(among["yes"], abs=1e-9)


@pytest.mark.parametrize(("end", "choice", "continuation"), [
    ("Answer:", "yes", " yes"), ("Answer: ", "yes", "yes"), ("Answer:", " yes", " yes"), ("Answer:\n", "yes", "yes"),
])
def test_a_space_stands_between_prompt_and_choice_once(end, choice, continuation, model, slow_score):
    (score,) = model.score(["Question ", end], [choice])
    assert score.text == choice
    assert score.logprob == pytest.approx(slow_score(["Question ", end], continuation), rel=LOGPROB_SHARE, abs=LOGPROB)


def test_a_choice_right_behind_a_picture_has_a_space_too(model, pictures, slow_score):
    (score,) = model.score(pictures[0], ["yes"])
    assert score.logprob == pytest.approx(slow_score(pictures[0], " yes"), rel=LOGPROB_SHARE, abs=LOGPROB)


@pytest.mark.parametrize(("end", "separator", "continuation"), [
    ("Answer:", "", "yes"), ("Answer:", "\n", "\nyes"), ("Answer: ", "\n", "yes"),
])
def test_a_model_with_another_separator_has_that_one(end, separator, continuation, model, tokenizer, slow_score):
    config = replace(model.config, prompts=PromptsConfig(answer_separator=separator))
    (score,) = Model(model.backend, config, tokenizer).score(end, ["yes"])
    assert score.text == "yes"
    assert score.logprob == pytest.approx(slow_score(end, continuation), rel=LOGPROB_SHARE, abs=LOGPROB)


@pytest.mark.parametrize("choices", [[], "yes", ["yes", ""], [" "]])
def test_choices_that_are_no_list_of_texts_are_refused(choices, torch_model):
    with pytest.raises(UsageError, match=r"choices are .*: give a list"):
        torch_model.score("x", choices)


def test_a_choice_with_an_image_token_is_refused(torch_model):
    with pytest.raises(UsageError, match="<image>"):
        torch_model.score("x", ["yes", "an <image>"])


def test_a_choice_may_fill_the_context_but_not_more(model, tokenizer, config, slow_score):
    room = config.language.context - 2  # behind the token of the beginning and "x"
    fits = " " + "z" * (room - 1)
    assert len(tokenizer.encode(fits)) == room
    (score,) = model.score("x", [fits])
    assert score.logprob == pytest.approx(slow_score("x", fits), abs=LOGPROB * room)
    with pytest.raises(DataError, match=f"the prompt has 2 tokens and a choice {room + 1}, the context"):
        model.score("x", ["yes", f"{fits}z"])
