"""Tokens of captions against those that COCO's evaluation makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flamingo_rt.evaluation.caption_tokens import PUNCTUATION, caption_tokens

OFFICIAL = json.loads((Path(__file__).parent / "fixtures" / "caption_tokens.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("caption", "tokens"), OFFICIAL["captions"])
def test_a_caption_has_the_official_tokens(caption: str, tokens: list[str]) -> None:
    assert caption_tokens(caption) == tokens


# pycocoevalcap, tokenizer/ptbtokenizer.py: PUNCTUATIONS. Its brackets are in capitals, the tokens in lower case.
@pytest.mark.parametrize(
    "mark", ["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", '"', "\u2014", "\u201c", "\u2026"]
)
def test_listed_punctuation_is_dropped_beside_words_and_alone(mark: str) -> None:
    assert caption_tokens(f"a dog {mark} cat{mark}") == ["a", "dog", "cat"]
    assert caption_tokens(mark) == []


def test_brackets_and_repeated_marks_stay() -> None:
    assert caption_tokens("(dog) wow!!") == ["-lrb-", "dog", "-rrb-", "wow", "!!"]
    assert not PUNCTUATION & set(caption_tokens("(a) [b] {c} ?! ..?"))


@pytest.mark.parametrize("text", [
    "a" * 50_000, "a-" * 25_000, "o'" * 25_000, "a.b." * 12_000, "1," * 25_000, "<a" * 25_000, "A&" * 25_000,
    "a. " + " " * 50_000, "!?" * 25_000, "-" * 50_000, "n'" * 25_000,
], ids=lambda text: text[:4])
def test_long_texts_of_one_kind_take_no_longer_than_others(text: str) -> None:
    """A pattern that tries every division of such a text would not come to an end."""
    assert sum(map(len, caption_tokens(text))) <= len(text)
