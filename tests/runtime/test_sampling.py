"""Choosing tokens: each processor against a slow, obvious version, and the sampler against probabilities."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flamingo_rt.errors import UsageError
from flamingo_rt.runtime.generation_options import GenerationOptions
from flamingo_rt.runtime.sampling import Sampler, keep_top_k, keep_top_p, largest, log_softmax, penalise_repetition

NOTHING_READ = np.array([], dtype=np.int64)
logit_lists = st.lists(st.integers(-800, 800).map(lambda n: n / 100), min_size=1, max_size=12)
SKEWED = np.array([2.0, 1.0, 0.0, -1.0, 1.5], dtype=np.float32)


def softmax(logits):
    weights = [math.exp(value - max(logits)) for value in logits]
    return [weight / sum(weights) for weight in weights]


def sampler(vocab_size=5, prompt_ids=NOTHING_READ, row=0, **options):
    return Sampler(GenerationOptions(**options), vocab_size, prompt_ids, row)


def draw(logits, count, **options):
    """Tokens of ``count`` draws from the same logits."""
    chooser = sampler(len(logits), **options)
    return [chooser.choose(logits)[0] for _ in range(count)]


def distance(tokens, probabilities):
    """Total variation between the frequencies of drawn tokens and their probabilities."""
    counts = np.bincount(tokens, minlength=len(probabilities)) / len(tokens)
    return np.abs(counts - probabilities).sum() / 2


@given(logits=logit_lists)
def test_log_softmax_is_the_logarithm_of_the_softmax(logits):
    expected = np.log(softmax(logits))
    np.testing.assert_allclose(log_softmax(np.array(logits)), expected, rtol=0, atol=1e-12)  # float64


def test_log_softmax_works_along_the_last_axis_for_any_size_of_logit():
    result = log_softmax(np.array([[1e30, 1e30], [0.0, -1e30]], dtype=np.float32))
    np.testing.assert_allclose(result[0], [math.log(0.5)] * 2, atol=1e-12)
    assert result[1, 0] == 0.0


@given(seed=st.integers(0, 1000), spread=st.sampled_from([0.1, 3.0, 40.0, 1e4]), shift=st.floats(-1e4, 1e4))
def test_a_logprob_is_that_of_float64(seed, spread, shift):
    logits = (np.random.default_rng(seed).standard_normal(5000) * spread + shift).astype(np.float32)
    token, logprob = sampler(len(logits)).choose(logits)
    assert logprob == pytest.approx(log_softmax(logits)[token], rel=1e-6, abs=1e-9)  # log_softmax is float64


def test_the_logprob_of_a_token_that_is_all_but_certain_keeps_what_the_others_have():
    logits = np.full(50_000, -21.0, dtype=np.float32)  # 4e-5 together, each far below what float32 adds to 1
    logits[7] = 0.0
    assert sampler(len(logits)).choose(logits)[1] == pytest.approx(log_softmax(logits)[7], rel=1e-6)


def test_a_greedy_token_takes_no_array_of_the_vocabularys_size():
    logits = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    chooser = sampler(len(logits), prompt_ids=np.arange(10), repetition_penalty=1.2)
    chooser.choose(logits)
    tracemalloc.start()
    chooser.choose(logits)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < logits.nbytes / 2  # numpy adds up in float64 in pieces


@given(
    size=st.integers(1, 1000), count=st.integers(1, 40), seed=st.integers(0, 99), values=st.sampled_from([3, 10**6])
)
def test_the_largest_values_are_found(size, count, seed, values):
    logits = np.random.default_rng(seed).integers(0, values, size).astype(np.float32)
    indices = largest(logits, count)
    assert len(set(indices.tolist())) == len(indices) == min(size, count)
    assert sorted(logits[indices], reverse=True) == sorted(logits.tolist(), reverse=True)[:count]


@given(logits=logit_lists, k=st.integers(1, 15))
def test_top_k_keeps_what_fewer_than_k_tokens_beat(logits, k):
    kept = keep_top_k(np.array(logits), k)
    expected = [v if sum(other > v for other in logits) < k else -np.inf for v in logits]
    np.testing.assert_array_equal(kept, expected)


@given(logits=logit_lists, p=st.floats(0.01, 0.999))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, p):
    probabilities = softmax(logits)
    order = sorted(range(len(logits)), key=lambda token: -logits[token])
    sums = [math.fsum(probabilities[token] for token in order[: n + 1]) for n in range(len(order))]
    assume(all(abs(total - p) > 1e-9 for total in sums))  # at the edge rounding decides
    size = next((n + 1 for n, total in enumerate(sums) if total >= p), len(order))
    expected = [value if token in order[:size] else -np.inf for token, value in enumerate(logits)]
    np.testing.assert_array_equal(keep_top_p(np.array(logits), p), expected)


@given(logits=logit_lists, penalty=st.floats(0.5, 4.0), data=st.data())
def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_seen_tokens(logits, penalty, data):
    seen = data.draw(st.lists(st.booleans(), min_size=len(logits), max_size=len(logits)))
    expected = [
        (value / penalty if value > 0 else value * penalty) if was_seen else value
        for value, was_seen in zip(logits, seen, strict=True)
    ]
    np.testing.assert_array_equal(penalise_repetition(np.array(logits), np.array(seen), penalty), expected)


@given(logits=logit_lists)
def test_greedy_takes_the_largest_logit(logits):
    token, logprob = sampler(len(logits)).choose(np.array(logits, dtype=np.float32))
    assert token == logits.index(max(logits))
    assert logprob == pytest.approx(math.log(softmax(logits)[token]), abs=1e-5)  # float32 logits


def test_draws_follow_the_softmax_at_a_temperature():
    tokens = draw(SKEWED, 4000, temperature=0.7)
    assert distance(tokens, softmax((SKEWED / 0.7).tolist())) < 0.03  # 4000 draws: about 0.01


def test_top_k_draws_from_the_likeliest_k_alone_in_their_proportions():
    tokens = draw(SKEWED, 4000, temperature=1.0, top_k=3)
    kept = softmax([2.0, 1.0, 1.5])
    assert distance(tokens, [kept[0], kept[1], 0, 0, kept[2]]) < 0.03
    assert set(tokens) == {0, 1, 4}


def test_top_p_draws_from_the_nucleus_alone_in_its_proportions():
    tokens = draw(SKEWED, 4000, temperature=1.0, top_p=0.6)  # 0.47 and 0.29 reach it
    kept = softmax([2.0, 1.5])
    assert distance(tokens, [kept[0], 0, 0, 0, kept[1]]) < 0.03
    assert set(tokens) == {0, 4}


def test_top_p_acts_on_what_top_k_left():
    assert set(draw(SKEWED, 300, temperature=1.0, top_k=2, top_p=0.6)) == {0}  # alone 0.62 of the two


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300, 5e-324])
def test_a_tiny_temperature_is_greedy_and_does_not_overflow(temperature):
    logits = np.array([-5e4, 3.0, 5e4, 4.9e4], dtype=np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert set(draw(logits, 20, temperature=temperature)) == {2}


def test_a_huge_temperature_is_uniform():
    assert distance(draw(SKEWED, 4000, temperature=1e9), [0.2] * 5) < 0.03


def test_ruled_out_tokens_are_never_drawn():
    logits = np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf], dtype=np.float32)
    assert set(draw(logits, 300, temperature=5.0)) == {1, 3}


def test_the_same_seed_draws_the_same_tokens_and_another_does_not():
    first = draw(SKEWED, 50, temperature=1.0, seed=7)
    assert draw(SKEWED, 50, temperature=1.0, seed=7) == first
    assert draw(SKEWED, 50, temperature=1.0, seed=8) != first


def test_rows_have_streams_of_their_own():
    assert draw(SKEWED, 50, temperature=1.0, row=0) != draw(SKEWED, 50, temperature=1.0, row=1)


def test_the_logprob_is_of_the_unchanged_logits():
    chooser = sampler(prompt_ids=np.array([0]), temperature=0.3, top_k=2, top_p=0.9, repetition_penalty=3.0)
    expected = np.log(softmax(SKEWED.tolist()))
    for _ in range(20):
        token, logprob = chooser.choose(SKEWED)
        assert logprob == pytest.approx(expected[token], abs=1e-6)


def test_the_penalty_counts_the_prompt_and_every_chosen_token():
    chooser = sampler(prompt_ids=np.array([0, 0]), repetition_penalty=10.0)
    tokens = [chooser.choose(SKEWED)[0] for _ in range(3)]
    assert tokens == [4, 1, 0]  # 2.0 counts 0.2; then 1.5 counts 0.15; then 1.0 counts 0.1


def test_the_logits_given_are_left_as_they_are():
    logits = SKEWED.copy()
    draw(logits, 5, temperature=0.5, top_k=3, top_p=0.8, repetition_penalty=2.0)
    np.testing.assert_array_equal(logits, SKEWED)


@settings(max_examples=60)
@given(logits=logit_lists, temperature=st.floats(0.01, 100), top_k=st.integers(0, 5), top_p=st.floats(0.01, 1.0))
def test_a_drawn_token_is_one_that_the_processors_left(logits, temperature, top_k, top_p):
    array = np.array(logits, dtype=np.float32)
    scaled = array.astype(np.float64) / temperature
    left = keep_top_p(keep_top_k(scaled, top_k) if top_k else scaled, min(1.0, top_p + 1e-9))  # room for rounding
    assert np.isfinite(left[draw(array, 1, temperature=temperature, top_k=top_k, top_p=top_p)[0]])


@pytest.mark.parametrize(("name", "value"), [
    ("max_new_tokens", 0), ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("top_k", -1),
    ("top_p", 0.0), ("top_p", 1.1), ("top_p", math.nan), ("repetition_penalty", 0.0),
    ("repetition_penalty", math.inf), ("seed", -1), ("stop", "text"), ("stop", ("",)), ("beams", 0), ("beams", 65),
    ("length_penalty", math.nan), ("length_penalty", 11), ("speculation", -1), ("speculation", 32),
])
def test_an_option_out_of_range_is_named_with_its_value(name, value):
    with pytest.raises(UsageError) as error:
        GenerationOptions(**{name: value})
    assert str(error.value).startswith(f"{name} is {value!r}; it must be ")
