"""Training of the tokenizer: any text survives it, special tokens are whole, and the same texts give the same file."""

from __future__ import annotations

import pytest

from flamingo_rt.config import TokensConfig
from flamingo_rt.errors import DataError
from flamingo_rt.training.tokenizer_training import train_tokenizer

TEXTS = ["Output: a red circle and a blue square", "Question: how many stars are there? Answer: two"] * 3
TOKENS = TokensConfig()
SPECIAL = [TOKENS.pad, TOKENS.bos, TOKENS.eos, TOKENS.image, TOKENS.end_of_chunk]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300, TOKENS)


@pytest.mark.parametrize("text", ["a red circle", "  two  spaces\n", "größer 漢字 🙂", "\x00\x7f", "<imag e>"])
def test_any_text_comes_back(tokenizer, text) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_special_tokens_come_first_and_stay_whole(tokenizer) -> None:
    assert [tokenizer.token_to_id(text) for text in SPECIAL] == list(range(len(SPECIAL)))
    for number, text in enumerate(SPECIAL):
        assert tokenizer.encode(f"a{text}b").ids.count(number) == 1
    assert tokenizer.decode(tokenizer.encode(f"a{''.join(SPECIAL)}b").ids) == "ab"


def test_the_vocabulary_is_no_larger_than_asked_and_used(tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 300
    assert train_tokenizer(TEXTS, 100_000, TOKENS).get_vocab_size() < 1000
    assert len(tokenizer.encode(TEXTS[0]).ids) < len(TEXTS[0])


def test_the_same_texts_give_the_same_file(tokenizer) -> None:
    assert train_tokenizer(iter(TEXTS), 300, TOKENS).to_str() == tokenizer.to_str()


def test_a_special_token_without_text_is_left_out() -> None:
    tokenizer = train_tokenizer(TEXTS, 300, TokensConfig(bos=""))
    assert tokenizer.token_to_id("<bos>") is None
    assert tokenizer.token_to_id(TOKENS.eos) == 1


def test_a_vocabulary_without_room_for_the_bytes_is_refused_with_the_least_size() -> None:
    assert train_tokenizer(TEXTS, 261, TOKENS).get_vocab_size() == 261
    with pytest.raises(DataError, match=r"260.* 261"):
        train_tokenizer(TEXTS, 260, TOKENS)
