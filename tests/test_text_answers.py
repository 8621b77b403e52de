"""Answers of a decoder in words: counted by their kinds, and those that it copies from its prompt."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import text_answers
from flamingo_rt.training import scenes


def test_answers_about_two_objects_are_counted_by_axis_and_by_place() -> None:
    above = scenes.Question("Is the star above the cross?", "no", "relation", "C7 F2")
    assert text_answers.kind_of(above) == "above or below"
    assert text_answers.kind_of(above.by_place()) == "above or below, by place"
    assert text_answers.kind_of(replace(above, text="Is the star right of the cross?")) == "left or right"
    assert text_answers.kind_of(scenes.Question("What color is the star?", "red", "color", "C7")) == "color"
    asked = [question for _, question in itertools.islice(text_answers.asked(), 60)]
    related = [text_answers.kind_of(question) for question in asked if question.kind == "relation"]
    pairs = list(zip(related[::2], related[1::2], strict=False))  # the last may be cut
    assert all(by_place == f"{kind}, by place" for kind, by_place in pairs)
    assert len(pairs) > 2


def test_answers_in_words_are_counted_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_answers, "SCENES", 4)
    checkpoint = Path(__file__).parent.parent / "models" / "tiny"
    model, tokenizer, tokens = text_answers.open_decoder(checkpoint)
    shots = "a red circle\nOutput: kekbem\na blue star\nOutput: fesfur\na red circle\nOutput:"
    prompt = [tokenizer.token_to_id(tokens.bos), *tokenizer.encode(shots).ids]
    wanted = tokenizer.encode(" kekbem").ids
    assert text_answers.answer(model, prompt, len(wanted)) == wanted
    asked = [question for _, question in text_answers.asked()]
    right = iter(tokenizer.encode(f" {question.answer}").ids for question in asked)
    monkeypatch.setattr(text_answers, "answer", lambda model, prompt, tokens: next(right))
    found = text_answers.measure(checkpoint)
    assert sum(count for _, count in found.values()) == len(asked) > 8
    assert all(good == count for good, count in found.values())
    monkeypatch.setattr(text_answers, "answer", lambda model, prompt, tokens: [-1])
    assert all(good == 0 for good, _ in text_answers.measure(checkpoint).values())


def test_answers_in_words_are_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(text_answers, "measure", lambda folder: {"color": (3, 4), "count": (5, 5)})
    monkeypatch.setattr(sys, "argv", ["_", "runs/a", "--results", str(tmp_path)])
    text_answers.main()
    assert capsys.readouterr().out == "runs/a: color 3 of 4, count 5 of 5\n"
    (file,) = tmp_path.glob("*-text-answers.json")
    assert json.loads(file.read_text())["runs/a"] == {"color": [3, 4], "count": [5, 5]}
