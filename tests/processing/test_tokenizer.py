"""The text tokenizer: any text survives, and a file that does not belong to the model is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from flamingo_rt.config import TokensConfig
from flamingo_rt.errors import DataError
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.training.tokenizer_training import train_tokenizer

TOKENS = TokensConfig()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(["a cat and a dog"], 270, TOKENS).save(str(path))
    return path


@pytest.fixture(scope="module")
def tokenizer(path):
    return TextTokenizer(path, TOKENS, 270)


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_a_text_without_special_tokens_comes_back_unchanged(text, tokenizer):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_single_ids_that_are_not_shown(tokenizer):
    ids = tokenizer.encode("a cat<|endofchunk|>")
    assert ids[-1] == tokenizer.end_of_chunk_id
    assert tokenizer.decode(ids) == "a cat"
    assert tokenizer.encode("<image>") == [tokenizer.image_id]


def test_no_token_is_added_to_a_text(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.bos_id not in tokenizer.encode("a cat")


def test_answers_stop_at_the_end_of_a_chunk_and_of_the_text(path, tokenizer):
    end_of_text = tokenizer.encode("<eos>")
    assert tokenizer.stop_ids == {tokenizer.end_of_chunk_id, *end_of_text}
    assert TextTokenizer(path, TokensConfig(eos=""), 270).stop_ids == {tokenizer.end_of_chunk_id}


def test_further_tokens_may_end_an_answer(path, tokenizer):
    several = TextTokenizer(path, TokensConfig(stop=("<bos>", "a")), 270)
    assert several.stop_ids == tokenizer.stop_ids | {tokenizer.bos_id, *tokenizer.encode("a")}


def test_an_empty_beginning_token_means_there_is_none(path):
    assert TextTokenizer(path, TokensConfig(bos=""), 270).bos_id is None


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*nowhere.json"):
        TextTokenizer(tmp_path / "nowhere.json", TOKENS, 270)


@pytest.mark.parametrize("change", [
    lambda text: "",
    lambda text: text[: len(text) // 2],
    lambda text: "[]",
    lambda text: json.dumps({**json.loads(text), "model": {"type": "Unheard"}}),
], ids=["empty", "cut short", "another json", "unknown model"])
def test_a_damaged_file_is_named(change, path, tmp_path):
    damaged = tmp_path / "damaged.json"
    damaged.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=r"cannot read .*damaged.json: .*not a tokenizer.json"):
        TextTokenizer(damaged, TOKENS, 270)


@pytest.mark.parametrize("role", ["image", "end_of_chunk", "bos", "eos"])
def test_a_missing_special_token_is_named(role, path):
    with pytest.raises(DataError, match=r"has no token '<other>', which the model's config.json names"):
        TextTokenizer(path, TokensConfig(**{role: "<other>"}), 270)


@pytest.mark.parametrize("text", ["<image>", "<|endofchunk|>"])
def test_a_token_that_is_not_found_in_a_text_is_named(text, path, tmp_path):
    content = json.loads(path.read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != text]
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"t.json does not find its token") as error:
        TextTokenizer(tmp_path / "t.json", TOKENS, 270)
    assert repr(text) in str(error.value)


def test_a_file_that_cuts_or_fills_texts_does_neither_here(path, tokenizer, tmp_path):
    cutting = Tokenizer.from_file(str(path))
    cutting.enable_truncation(4)
    cutting.enable_padding(length=40)
    cutting.save(str(tmp_path / "t.json"))
    text = "a dog and a bird"
    assert len(tokenizer.encode(text)) > 4
    assert TextTokenizer(tmp_path / "t.json", TOKENS, 270).encode(text) == tokenizer.encode(text)


def test_more_tokens_than_the_model_knows_are_refused(path, tokenizer):
    count = max(json.loads(path.read_text())["model"]["vocab"].values()) + 1
    assert TextTokenizer(path, TOKENS, count).image_id == tokenizer.image_id
    with pytest.raises(DataError, match=f"has {count} tokens, the model knows {count - 1}: not its tokenizer"):
        TextTokenizer(path, TOKENS, count - 1)
