"""The growing answer: what is streamed is never taken back, never broken, and ends where it should."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flamingo_rt.runtime.answer import TAIL_TOKENS, UNFINISHED_CHARACTER, Answer
from flamingo_rt.runtime.generation_options import GenerationOptions

texts = st.text(st.sampled_from("abc é😀ñ"), max_size=14)
stops = st.lists(st.text(st.sampled_from("abc é😀"), min_size=1, max_size=4), max_size=3)


def answer(tokenizer, stop=(), limit=1000, reason="max_new_tokens"):
    return Answer(tokenizer, GenerationOptions(stop=tuple(stop)), limit, reason)


def feed(growing, tokens):
    """The pieces given out for each token."""
    return [growing.push(token, -1.0) for token in tokens]


def expected_text(tokenizer, tokens, stop):
    """The text up to the stop text that is whole first."""
    for count in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:count])
        starts = [text.index(each) for each in stop if each in text]
        if starts:
            return text[: min(starts)]
    return tokenizer.decode(tokens)


@settings(max_examples=200, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 299), max_size=80),
    stop=st.lists(st.text(st.sampled_from("abc é"), min_size=1, max_size=3), max_size=2),
)
def test_the_text_is_that_of_all_tokens_though_only_the_last_are_decoded(tokens, stop, tokenizer):
    tokens = [token for token in tokens if token not in tokenizer.stop_ids]  # any bytes, special tokens too
    growing = answer(tokenizer, stop)
    feed(growing, [*tokens, tokenizer.end_of_chunk_id])
    assert growing.text == expected_text(tokenizer, tokens, stop)


@pytest.mark.parametrize("text", ["a red circle é " * 100, "😀ñ" * 100, "#" * 300, " " * 300])
def test_a_push_decodes_a_bounded_number_of_tokens(text, tokenizer, monkeypatch):
    tokens, decoded, decode = tokenizer.encode(text), [], tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids: decoded.append(len(ids)) or decode(ids))
    growing = answer(tokenizer, ["###b", "circle b"], limit=10_000)
    feed(growing, tokens)
    assert max(decoded) <= 3 * TAIL_TOKENS
    assert len(decoded) <= 2 * len(tokens)
    assert growing.text == text[: len(growing.text)]
    assert len(text) - len(growing.text) < len("circle b")


def test_a_space_that_the_tokenizer_drops_at_the_beginning_is_kept_later():
    class Sentencepiece:
        """A tokenizer like LLaMA's: a token may begin with a space, and decoding drops one at the beginning."""

        stop_ids = frozenset()

        def decode(self, ids):
            return "".join(f" {number}" for number in ids).removeprefix(" ")

    growing = answer(Sentencepiece())
    assert "".join(feed(growing, range(100))) == Sentencepiece().decode(range(100))


def test_a_fork_grows_on_its_own(tokenizer):
    growing = answer(tokenizer, limit=3)
    feed(growing, tokenizer.encode("x"))
    other = growing.fork()
    feed(other, tokenizer.encode("yz"))
    assert (growing.text, growing.room, growing.stop_reason) == ("x", 2, None)
    assert (other.text, other.room, other.stop_reason) == ("xyz", 0, "max_new_tokens")


@settings(max_examples=200, deadline=None)
@given(text=texts, stop=stops)
@example(text="abé", stop=["bé"])  # é is two tokens: b stands before half a character
@example(text="a😀 b", stop=["😀 ñ"])
def test_pieces_join_to_the_text_before_the_first_stop_and_hold_nothing_unfinished(text, stop, tokenizer):
    tokens, growing = tokenizer.encode(text), answer(tokenizer, stop)
    pieces = feed(growing, [*tokens, tokenizer.end_of_chunk_id])
    assert "".join(pieces) == growing.text == expected_text(tokenizer, tokens, stop)
    assert UNFINISHED_CHARACTER not in growing.text


def test_a_character_of_several_tokens_comes_out_whole(tokenizer):
    tokens = tokenizer.encode("a😀b")
    assert len(tokens) == 6
    assert feed(answer(tokenizer), tokens) == ["a", "", "", "", "😀", "b"]


def test_a_stop_text_over_several_tokens_is_held_back_until_it_is_refuted(tokenizer):
    tokens = [token for character in "x##y###z" for token in tokenizer.encode(character)]
    growing = answer(tokenizer, ["###"])
    assert feed(growing, tokens) == ["x", "", "", "##y", "", "", "", ""]
    assert growing.stop_reason == "stop_string"
    assert growing.text == "x##y"


def test_text_that_was_held_back_comes_out_at_the_end(tokenizer):
    growing = answer(tokenizer, ["###"])
    pieces = feed(growing, [*tokenizer.encode("x"), *tokenizer.encode("#"), tokenizer.end_of_chunk_id])
    assert pieces == ["x", "", "#"]
    assert growing.stop_reason == "end_of_chunk"


@pytest.mark.parametrize("end", ["<|endofchunk|>", "<eos>"])
def test_an_end_token_ends_the_answer_and_is_not_part_of_it(end, tokenizer):
    growing, tokens = answer(tokenizer), tokenizer.encode("cat")
    feed(growing, [*tokens, *tokenizer.encode(end)])
    assert growing.stop_reason == "end_of_chunk"
    assert growing.tokens == tokens
    assert growing.logprobs == [-1.0] * len(tokens)
    assert growing.text == "cat"


def test_its_probability_is_that_of_all_its_tokens_and_the_one_that_ended_it(tokenizer):
    growing = answer(tokenizer)
    assert growing.probability == 1.0
    growing.push(*tokenizer.encode("x"), -0.5)
    assert growing.probability == pytest.approx(math.exp(-0.5))
    growing.push(tokenizer.end_of_chunk_id, -2.0)
    growing.push(*tokenizer.encode("x"), -9.0)  # after the end
    assert growing.probability == pytest.approx(math.exp(-2.5))
    assert growing.logprobs == [-0.5]


def test_a_probability_that_rounding_would_push_above_one_is_one(tokenizer):
    growing = answer(tokenizer)
    growing.push(*tokenizer.encode("x"), 1e-9)
    assert growing.probability == 1.0


@pytest.mark.parametrize("reason", ["max_new_tokens", "context"])
def test_the_limit_ends_the_answer_for_its_reason(reason, tokenizer):
    growing = answer(tokenizer, limit=2, reason=reason)
    tokens = tokenizer.encode("xyz")
    assert feed(growing, tokens) == ["x", "y", ""]
    assert (growing.stop_reason, growing.tokens) == (reason, tokens[:2])


def test_a_stop_text_at_the_limit_is_the_reason(tokenizer):
    growing = answer(tokenizer, ["y"], limit=2)
    feed(growing, tokenizer.encode("xyz"))
    assert (growing.stop_reason, growing.text) == ("stop_string", "x")


def test_at_the_limit_everything_comes_out_even_half_a_character(tokenizer):
    tokens = tokenizer.encode("x😀")[:3]
    growing = answer(tokenizer, limit=3)
    assert feed(growing, tokens) == ["x", "", tokenizer.decode(tokens)[1:]]


def test_nothing_is_taken_after_the_end(tokenizer):
    growing = answer(tokenizer)
    feed(growing, [*tokenizer.encode("x"), tokenizer.end_of_chunk_id])
    assert growing.push(tokenizer.encode("y")[0], -1.0) == ""
    assert (growing.text, len(growing.tokens)) == ("x", 1)
