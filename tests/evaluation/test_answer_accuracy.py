"""Accuracy of answers against figures of the official VQA evaluation, and what of a generated text is judged."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest

from flamingo_rt.errors import DataError
from flamingo_rt.evaluation.answer_accuracy import exact_match, first_answer, first_caption, normalized, vqa_accuracy

OFFICIAL = json.loads((Path(__file__).parent / "fixtures" / "vqa_accuracy.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", OFFICIAL["cases"], ids=lambda case: case["case"])
def test_an_answer_has_the_official_accuracy(case: dict) -> None:
    assert normalized(case["answer"]) == case["normalized"]
    assert vqa_accuracy(case["answer"], case["people"]) == pytest.approx(case["accuracy"], abs=1e-9)


def test_words_of_the_official_table_of_contractions_are_spelled_as_there() -> None:
    assert len(OFFICIAL["words"]) == 120
    assert {word: normalized(word) for word in OFFICIAL["words"]} == OFFICIAL["words"]


@pytest.mark.parametrize("matches", range(11))
def test_ten_people_are_ten_subsets_of_nine(matches: int) -> None:
    people = ["cat"] * matches + [f"other {number}" for number in range(10 - matches)]
    subsets = [min(nine.count("cat") / 3, 1) for nine in combinations(people, 9)]
    assert len(subsets) == 10
    assert vqa_accuracy("cat", people) == pytest.approx(sum(subsets) / 10)


def test_one_persons_answer_is_matched_in_its_normalized_form() -> None:
    assert vqa_accuracy("Two dogs.", ["the 2 dogs"]) == 1.0
    assert vqa_accuracy("Two dogs.", ["2 cats"]) == 0.0


def test_a_question_that_nobody_answered_is_refused() -> None:
    with pytest.raises(DataError, match="no people's answers"):
        vqa_accuracy("yes", [])


@pytest.mark.parametrize("answer", ["a red car", "A red  Car", " a red car. ", "a red\tcar", "A RED CAR .", "straße"])
def test_case_whitespace_and_a_final_period_do_not_count_in_an_exact_match(answer: str) -> None:
    assert exact_match(answer, ["something else", "A red car", "STRASSE"])


@pytest.mark.parametrize("answer", ["red car", "a red car..", "a red car!", "a redcar", ""])
def test_everything_else_counts_in_an_exact_match(answer: str) -> None:
    assert not exact_match(answer, ["a red car"])


def test_no_answer_matches_none() -> None:
    assert not exact_match("yes", [])


@pytest.mark.parametrize(("text", "answer"), [
    (" yes", "yes"),
    ("yes\nQuestion: no", "yes"),
    ("\n yes \n no", "yes"),
    ("yes Question:what is it? Short answer:dog", "yes"),
    ("2 Short answer:3", "2"),
    ("2Answer:3", "2"),
    ("red, white and blue", "red"),
    ("2,000", "2,000"),
    ("red,white", "red,white"),
    ("red Question, white", "red"),
    ("red, Question", "red"),
    ("Short hair", ""),
    ("the question", "the question"),
    ("", ""),
])
def test_an_answer_ends_at_its_line_its_first_comma_or_the_next_question(text: str, answer: str) -> None:
    assert first_answer(text) == answer


@pytest.mark.parametrize(("text", "caption"), [
    (" a dog, a cat", "a dog, a cat"),
    ("a dog. Output:a cat", "a dog."),
    ("a dog\nOutput", "a dog"),
    ('a "stop" sign', "a stop sign"),
    ("Output:a cat", ""),
    ("the output", "the output"),
])
def test_a_caption_ends_at_the_next_one(text: str, caption: str) -> None:
    assert first_caption(text) == caption
