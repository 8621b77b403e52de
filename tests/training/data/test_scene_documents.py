"""Documents about drawn scenes: details, then texts that follow from them."""

from __future__ import annotations

import re

from flamingo_rt.config import PromptsConfig
from flamingo_rt.training import scenes
from flamingo_rt.training.data.scene_documents import MOVING, SceneDocuments, texts_of_scene
from flamingo_rt.training.data.text_batches import document_lines, document_text

PROMPTS = PromptsConfig()
# Column, line, words.
PLACED = re.compile(r"at ([A-J])(\d) an? (?:small |large )?(.*?)(?: moving \w+)? (?:\1\2|\2\1)(?=, | and at |$)")
DOCUMENTS = [document_text(SceneDocuments(3, PROMPTS).sample(index)).split("\n") for index in range(200)]


def still(document: list[str]) -> bool:
    return " moving " not in document[0]


def test_a_document_repeats_and_another_seed_gives_another() -> None:
    text, again, other = (document_text(SceneDocuments(seed).sample(5)) for seed in (3, 3, 4))
    assert text == again != other


RELATION = re.compile(
    r"Question: Is the [a-z ]+ (left of|right of|above|below) the [a-z ]+(?:, by place)?\? "
    r"Answer: (?:[A-J]\d [A-J]\d )?(yes|no)")
POSITION = re.compile(r"Question: Where is the [a-z ]+(?:, by place)?\? Answer: .*")
ORDER = re.compile(r"Question: (Places|Places of what is there|What is there) from ([a-z]+ to [a-z]+)\? Answer: (.*)")


def compares(document: list[str]) -> bool:
    """Whether every question is about places, and one is about two objects."""
    return any(RELATION.fullmatch(text) for text in document[1:]) and all(
        RELATION.fullmatch(text) or POSITION.fullmatch(text) or ORDER.fullmatch(text) for text in document[1:])


def test_in_half_of_the_documents_the_line_follows_an_object() -> None:
    turned = [re.search(r" \d[A-J](, | and at |$)", details) is not None for details, *_ in DOCUMENTS]
    assert 0.4 < sum(turned) / len(turned) < 0.6


def test_a_document_is_details_then_the_texts_of_its_scene_in_any_order() -> None:
    turned, placed = 0, []
    for index, (details, *texts) in enumerate(DOCUMENTS):
        if not still([details]) or compares([details, *texts]):
            continue
        written = list(texts_of_scene(3, index, PROMPTS, questions=6))
        placed += [(details, text) for text in texts if ", by place?" in text]
        bare = r", by place\? Answer: (?:[A-J]\d )*"
        texts = [re.sub(bare, "? Answer: ", text) for text in texts]
        assert sorted(texts) == sorted(written)
        assert len(set(texts)) == len(texts) >= 4
        turned += texts != written
        caption = next(text for text in texts if text.startswith("Output: ")).removeprefix("Output: ")
        assert re.split(", | and ", re.sub(r"\ban? ", "", caption)) == from_left_to_right(details)
    assert turned > 80
    assert len(placed) > 100
    for details, text in placed:
        assert set(re.findall(r"[A-J]\d", text)) <= set(re.findall(r"[A-J]\d", details))


def from_left_to_right(details: str) -> list[str]:
    """The objects' words without their sizes; no two share a column."""
    return [words for *_, words in sorted(PLACED.findall(details))]


def test_some_documents_compare_places_alone_with_as_many_yes_as_no() -> None:
    comparing = [document for document in DOCUMENTS if compares(document)]
    assert 50 < len(comparing) < 110
    answers = [text.rsplit(" ", 1)[1] for document in comparing for text in document[1:] if RELATION.fullmatch(text)]
    assert 0.4 < answers.count("yes") / len(answers) < 0.6
    for details, *texts in comparing:
        assert len(set(texts)) == len(texts) > 1
        relations = [text for text in texts if RELATION.fullmatch(text)]
        assert all(compared_in(details, text) == text.endswith(" yes") for text in relations)


def test_beside_comparisons_all_objects_or_their_places_are_listed_in_an_order() -> None:
    asked = [(details, *ORDER.fullmatch(text).groups()) for details, *texts in DOCUMENTS for text in texts
             if ORDER.fullmatch(text)]
    assert {(form, direction) for _, form, direction, _ in asked} == {
        (form, direction) for form in ("Places", "Places of what is there", "What is there")
        for direction in ("left to right", "right to left", "top to bottom", "bottom to top")}
    for details, form, direction, answer in asked:
        axis, turned = direction.endswith(("bottom", "top")), direction in ("right to left", "bottom to top")
        placed = sorted(PLACED.findall(details), key=lambda place: place[axis], reverse=turned)
        if form == "What is there":
            assert re.split(", | and ", re.sub(r"\ban? ", "", answer)) == [words for *_, words in placed]
        else:
            ends = [f" {words}" if form == "Places of what is there" else "" for *_, words in placed]
            assert re.sub(r" an? ", " ", answer) == " ".join(
                place[axis] + end for place, end in zip(placed, ends, strict=True))


def compared_in(details: str, text: str) -> bool:
    """Whether a question's statement is true of the tenths that the details give; tenths that are equal decide nothing,
    and then the answer is taken as it is."""
    places = {re.sub("^(striped|dotted) ", "", words): (column, line)
              for column, line, words in PLACED.findall(details)}
    one, relation, other = re.search(r"Is the ([a-z ]+) (left of|right of|above|below) the ([a-z ]+)", text).groups()
    first, second = (next(place for words, place in places.items() if words == name or words.endswith(f" {name}"))
                     for name in (one, other))
    axis = 0 if relation in ("left of", "right of") else 1
    if first[axis] == second[axis]:
        return text.endswith(" yes")
    return (first[axis] < second[axis]) == (relation in ("left of", "above"))


def test_the_details_come_in_any_order() -> None:
    columns = ["".join(re.findall(r"at ([A-J])\d", details)) for details, *_ in DOCUMENTS]
    several = [places for places in columns if len(places) > 1]
    turned = [places for places in several if list(places) != sorted(places)]
    assert 0.45 < len(turned) / len(several) < 0.8  # of two objects one order in two, of three five in six


def test_some_documents_are_about_what_moves() -> None:
    moving = [document for document in DOCUMENTS if not still(document)]
    assert 0.5 * MOVING < len(moving) / len(DOCUMENTS) < 2 * MOVING
    for details, *texts in moving:
        direction = re.findall(r" moving (left|right|up|down) (?:[A-J]\d|\d[A-J])(?=, | and at |$)", details)
        assert len(direction) == 1
        assert f"{PROMPTS.ask(scenes.WHICH_WAY)} {direction[0]}" in texts
        caption = next(text for text in texts if text.startswith("Output: ")).removeprefix("Output: ")
        object_words = re.fullmatch(rf"an? (.*) moves {direction[0]}", caption)
        assert object_words
        assert re.search(rf"\b{object_words[1]} moving ", details)
    assert {direction for details, *_ in moving for direction in re.findall(r" moving (\w+)", details)} == {
        "left", "right", "up", "down"}


def test_what_follows_from_the_details_is_learnt_and_nothing_else() -> None:
    for index in range(50):
        lines = document_lines(SceneDocuments(3, PROMPTS).sample(index))
        learnt, given = (
            [text.strip() for text, known in lines if known == wanted] for wanted in (True, False)
        )
        details, *prompts = given
        assert details.startswith("at ")
        assert all(re.fullmatch(r"Output:|Question: .*\? Answer:", prompt) for prompt in prompts)
        assert len(prompts) == len(learnt)
