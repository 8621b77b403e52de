"""Prompts: token ids and phi, the index of the visual each token looks at (paper §3.1.3)."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_rt.config import TokensConfig
from flamingo_rt.errors import UsageError
from flamingo_rt.processing.media import Image, Video
from flamingo_rt.processing.prompt import build_prompt
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.training.tokenizer import train_tokenizer

A, B = Image("a.png"), Image("b.png")
CLIP = Video("clip.mp4", frames=2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(["a cat and a dog"], 270, TokensConfig()).save(str(path))
    return TextTokenizer(path, TokensConfig(), 270)


def test_a_visual_is_one_image_token_and_the_text_behind_it_refers_to_it(tokenizer):
    prompt = build_prompt(["so ", A, "cat", CLIP, B, "dog"], tokenizer)
    so, cat, dog = (tokenizer.encode(text) for text in ("so ", "cat", "dog"))
    image = tokenizer.image_id
    assert prompt.input_ids.tolist() == [tokenizer.bos_id, *so, image, *cat, image, image, *dog]
    assert prompt.media_index.tolist() == [0] + [0] * len(so) + [1] + [1] * len(cat) + [2, 3] + [3] * len(dog)
    assert prompt.visuals == (A, CLIP, B)
    assert prompt.input_ids.dtype == prompt.media_index.dtype == np.int64
    assert len(prompt) == len(prompt.input_ids)


def test_the_same_picture_twice_is_two_visuals(tokenizer):
    prompt = build_prompt([A, A], tokenizer)
    assert prompt.visuals == (A, A)
    assert prompt.media_index.tolist() == [0, 1, 2]


@pytest.mark.parametrize("part", ["cat", A, CLIP], ids=["text", "picture", "clip"])
def test_a_single_part_needs_no_list(part, tokenizer):
    alone, listed = build_prompt(part, tokenizer), build_prompt([part], tokenizer)
    np.testing.assert_array_equal(alone.input_ids, listed.input_ids)
    assert alone.visuals == listed.visuals


def test_a_continuation_has_no_beginning_token(tokenizer):
    whole, rest = build_prompt("cat", tokenizer), build_prompt("cat", tokenizer, start=False)
    assert whole.input_ids.tolist() == [tokenizer.bos_id, *rest.input_ids.tolist()]


def test_a_tokenizer_without_a_beginning_token_puts_none(tmp_path):
    tokens = TokensConfig(bos="")
    train_tokenizer(["x"], 260, tokens).save(str(tmp_path / "t.json"))
    tokenizer = TextTokenizer(tmp_path / "t.json", tokens, 260)
    assert build_prompt("cat", tokenizer).input_ids.tolist() == tokenizer.encode("cat")


def test_the_end_of_chunk_written_in_a_text_is_its_token(tokenizer):
    ids = build_prompt([A, "cat<|endofchunk|>"], tokenizer).input_ids
    assert ids[-1] == tokenizer.end_of_chunk_id


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("parts", [[], "", ["", ""]])
def test_an_empty_prompt_is_refused(parts, start, tokenizer):
    with pytest.raises(UsageError, match="empty"):
        build_prompt(parts, tokenizer, start=start)


def test_an_image_token_written_in_a_text_is_refused(tokenizer):
    with pytest.raises(UsageError, match="<image>: give the picture itself"):
        build_prompt([A, "look: <image>"], tokenizer)


@pytest.mark.parametrize(
    "parts, name",
    [(["x", Path("a.png")], "PosixPath"), (Path("a.png"), "PosixPath"), (["x", None], "NoneType"), (None, "NoneType"),
     (b"x", "int"), ([["x"]], "list")],
)
def test_a_part_of_another_type_is_named(parts, name, tokenizer):
    with pytest.raises(UsageError, match=f"not {name}: wrap a path in Image"):
        build_prompt(parts, tokenizer)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.sampled_from(["cat", " dog", "é", A, B, CLIP]), min_size=1))
def test_phi_counts_the_image_tokens_up_to_each_token(parts, tokenizer):
    prompt = build_prompt(parts, tokenizer)
    np.testing.assert_array_equal(prompt.media_index, np.cumsum(prompt.input_ids == tokenizer.image_id))
    assert len(prompt.visuals) == prompt.media_index[-1]
