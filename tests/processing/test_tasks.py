"""Prompts in a model's own form: captions and questions, with shots before them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_rt.config import FlamingoConfig, PromptsConfig, TokensConfig
from flamingo_rt.errors import UsageError
from flamingo_rt.processing.tasks import (
    asks_about_a_picture,
    asks_for_caption,
    caption_prompt,
    caption_shot,
    question_prompt,
    question_shot,
)
from flamingo_rt.processing.visuals import Image, Video

A, B, CLIP = Image("a.png"), Image("b.png"), Video("clip.mp4", frames=2)
PAPER = FlamingoConfig()
OPEN = replace(PAPER, prompts=PromptsConfig(question="Question:{} Short answer:", answer_separator=""))


def written(parts) -> str:
    """A prompt as the one text it stands for, whatever its parts."""
    return "".join(part if isinstance(part, str) else "<image>" for part in parts)


@pytest.mark.parametrize(("config", "text"), [
    (PAPER, "<image>Output: a cat<|endofchunk|><image>Output:"),
    (OPEN, "<image>Output:a cat<|endofchunk|><image>Output:"),
], ids=["paper", "OpenFlamingo"])
def test_a_caption_is_asked_in_the_models_form(config, text) -> None:
    assert written(caption_prompt(config, A, [(B, "a cat")])) == text


@pytest.mark.parametrize(("config", "text"), [
    (PAPER, "<image>Question: Is it a cat? Answer: yes<|endofchunk|><image>Question: What {is} it? Answer:"),
    (OPEN, "<image>Question:Is it a cat? Short answer:yes<|endofchunk|><image>Question:What {is} it? Short answer:"),
], ids=["paper", "OpenFlamingo"])
def test_a_question_is_asked_in_the_models_form(config, text) -> None:
    assert written(question_prompt(config, A, "What {is} it?", [(B, "Is it a cat?", "yes")])) == text


def test_pictures_and_shots_come_in_the_order_given() -> None:
    parts = caption_prompt(PAPER, [A, CLIP], [(CLIP, "one"), ([B, A], "two")])
    assert [part for part in parts if not isinstance(part, str)] == [CLIP, B, A, A, CLIP]
    assert caption_prompt(PAPER, A) == [A, "Output:"]
    assert question_prompt(PAPER, (A, B), "q?") == [A, B, "Question: q? Answer:"]


def test_a_question_needs_no_picture() -> None:
    assert question_prompt(PAPER, [], "q?") == ["Question: q? Answer:"]


def test_shots_alone_are_the_beginning_of_the_prompt() -> None:
    assert caption_prompt(PAPER, A, [(B, "a cat")]) == [*caption_shot(PAPER, B, "a cat"), A, "Output:"]
    asked = question_prompt(PAPER, A, "q?", [(B, "p?", "yes")])
    assert asked == [*question_shot(PAPER, B, "p?", "yes"), A, "Question: q? Answer:"]


def test_the_end_of_chunk_is_the_models() -> None:
    config = replace(PAPER, tokens=TokensConfig(end_of_chunk="<end>"))
    assert caption_shot(config, A, "a cat") == [A, "Output: a cat<end>"]


words = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"])).filter(str.strip)


@settings(max_examples=100, deadline=None)
@given(shots=st.lists(st.tuples(st.sampled_from([A, B, CLIP]), words, words), max_size=4), question=words)
def test_every_text_stands_once_without_the_spaces_around_it(shots, question) -> None:
    expected = [f"<image>Question: {q.strip()} Answer: {a.strip()}<|endofchunk|>" for _, q, a in shots]
    expected.append(f"<image>Question: {question.strip()} Answer:")
    assert written(question_prompt(PAPER, A, question, shots)) == "".join(expected)


@pytest.mark.parametrize("text", ["", " \n", None, 3])
@pytest.mark.parametrize(("name", "build"), [
    ("caption", lambda text: caption_prompt(PAPER, A, [(B, text)])),
    ("question", lambda text: question_prompt(PAPER, A, text)),
    ("question", lambda text: question_prompt(PAPER, A, "q?", [(B, text, "yes")])),
    ("answer", lambda text: question_prompt(PAPER, A, "q?", [(B, "p?", text)])),
], ids=["caption", "query", "shot's question", "answer"])
def test_an_empty_text_is_named(name, build, text) -> None:
    with pytest.raises(UsageError, match=rf"the {name} is .*: give a text that is not empty"):
        build(text)


@pytest.mark.parametrize("token", ["<image>", "<|endofchunk|>"])
@pytest.mark.parametrize("build", [
    lambda text: caption_shot(PAPER, A, text),
    lambda text: question_shot(PAPER, A, text, "yes"),
    lambda text: question_shot(PAPER, A, "q?", text),
    lambda text: question_prompt(PAPER, A, text),
], ids=["caption", "shot's question", "answer", "query"])
def test_a_text_with_a_token_of_the_form_is_refused(build, token) -> None:
    with pytest.raises(UsageError) as error:
        build(f"a {token} b")
    assert f"'a {token} b' holds {token}: leave it out" in str(error.value)


@pytest.mark.parametrize(("visuals", "said"), [
    ("a.png", r"the picture is the path 'a.png': write Image\('a.png'\)"), (Path("a.png"), r"Image\('a.png'\)"),
    ([A, None], "NoneType"), (PIL.Image.new("L", (2, 2)), r"a Pillow image \(L, 2x2\): write Image"),
    (np.zeros((2, 2, 3), np.uint8), r"an array, .* write Image"),
    ([], "there is no picture"),
])
@pytest.mark.parametrize("build", [
    lambda visuals: caption_prompt(PAPER, visuals),
    lambda visuals: caption_prompt(PAPER, A, [(visuals, "a cat")]),
    lambda visuals: question_prompt(PAPER, A, "q?", [(visuals, "p?", "yes")]),
], ids=["caption", "caption shot", "question shot"])
def test_a_query_that_is_no_picture_is_refused(build, visuals, said) -> None:
    with pytest.raises(UsageError, match=said):
        build(visuals)


@pytest.mark.parametrize(("shot", "said"), [
    ((Image(np.zeros((9, 9, 3), np.uint8)), np.zeros(99)), r"a shot has 2 parts \(Image, ndarray\), not 3: give"),
    (np.zeros((9, 9, 3), np.uint8), "a shot is of type ndarray: give a tuple"),
    ([A] * 40, r"a shot has 40 parts \(Image, Image, Image, Image, Image, Image, …\), not 3"),
    ((A, np.zeros(99), "yes"), "the question is of type ndarray: give a text"),
])
def test_a_message_about_a_shot_says_what_it_has_and_shows_no_picture(shot, said) -> None:
    with pytest.raises(UsageError, match=said) as error:
        question_prompt(PAPER, A, "q?", [shot])
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(("parts", "asks"), [
    ([A, "Output:"], True), ([A, " Output: "], True), ([A, "Out", "put:"], True), ([A, B, "Output:"], True),
    ([CLIP, "Output:"], True), ("Output:", False), (["Output:"], False), ([A], False), ([A, ""], False),
    ([A, "Output: a"], False), ([A, "Question: is it? Answer:"], False), (A, False), ([A, "see Output:"], False),
    ([A, "Output: a cat<|endofchunk|>", B, "Output:"], False), (["Look: ", A, "Output:"], False),
])
def test_a_prompt_asks_for_a_caption_when_it_is_a_picture_and_the_models_text(parts, asks) -> None:
    assert asks_for_caption(PAPER, parts) is asks


@pytest.mark.parametrize(("text", "asks"), [
    ("Output:", True), (" Output:", True), ("Question: is it red? Answer:", True), ("Question: Answer:", False),
    ("Question: is it red?", False), ("The capital of France is", False), ("", False),
])
def test_a_text_asks_about_a_picture_when_it_is_in_one_of_the_models_forms(text, asks) -> None:
    assert asks_about_a_picture(PAPER, text) is asks


@pytest.mark.parametrize("shot", [(A,), (A, "p?"), A, "a.png", (A, "p?", "yes", "no")])
def test_a_shot_of_another_length_is_refused(shot) -> None:
    with pytest.raises(UsageError, match=r"a shot (is|has) .*: give (a tuple )?\(picture, question, answer\)"):
        question_prompt(PAPER, A, "q?", [shot])
