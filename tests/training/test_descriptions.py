"""Captions and questions: each is checked against its scene by a reader that shares no code with the writer."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from made_scenes import drawn_scenes, row, thing

from flamingo_rt.training.scenes import (
    COLORS,
    NUMBERS,
    SHAPES,
    Question,
    answer_is_right,
    caption,
    caption_is_right,
    comparisons,
    detailed_caption,
    orderings,
    questions,
)

SINGULAR = {plural: shape for shape, plural in SHAPES.items()}


@pytest.fixture(scope="module")
def scenes():
    return drawn_scenes()


@pytest.fixture(scope="module")
def asked(scenes):
    rng = np.random.default_rng(1)
    return [(scene, question) for scene in scenes for question in questions(scene, rng, 4)]


def test_a_caption_reads_from_left_to_right_with_articles_and_textures():
    scene = row(thing("circle", "red"), thing("square", "blue", "striped"), thing("star", "orange"))
    assert caption(scene) == "a red circle, a striped blue square and an orange star"
    assert caption(row(thing("heart", "orange"), thing("cross", "white", "dotted"))) == (
        "an orange heart and a dotted white cross"
    )
    assert caption(row(thing("seven", "blue"))) == "a handwritten seven in blue"


def test_details_are_sizes_and_the_tenths_where_centres_lie():
    scene = row(thing(x=0.28, y=0.71), thing("square", "blue", "striped", "small", 0.5, 0.999), thing("star", "orange"))
    assert detailed_caption(scene) == (
        "at C7 a large red circle C7, at F9 a small striped blue square F9 and at F5 a large orange star F5"
    )
    assert detailed_caption(scene, {1: "up"}, order=(2, 1, 0)) == (
        "at F5 a large orange star F5, at F9 a small striped blue square moving up F9 and at C7 a large red circle C7"
    )
    assert detailed_caption(scene, {1: "up"}, turned=True) == (
        "at C7 a large red circle 7C, at F9 a small striped blue square moving up 9F and at F5 a large orange star 5F"
    )
    assert detailed_caption(row(thing("seven", "blue", x=0.41))) == "at E5 a handwritten seven in blue E5"
    assert detailed_caption(row(thing("cross", "orange", size="any"))) == "at F5 an orange cross F5"


def test_details_hold_the_caption_and_whatever_a_question_asks(scenes, asked):
    read = re.compile(r"at ([A-J])([0-9]) an? (?:(small|large) )?(.*?) \1\2(?=, | and at |$)")
    for scene in scenes[:300]:
        found = read.findall(detailed_caption(scene))
        assert [words for *_, words in found] == re.split(", | and ", re.sub(r"\ban? ", "", caption(scene)))
        for placed, (column, line, size, _) in zip(scene.objects, found, strict=True):
            assert size == ("" if placed.is_digit else placed.size)
            assert _tenth(column) / 10 <= placed.x < (_tenth(column) + 1) / 10
            assert int(line) / 10 <= placed.y < (int(line) + 1) / 10
    # The tenths alone decide where something is: 3 to 6 are the middle third of those that are asked about.
    for scene, question in asked:
        if question.kind == "position":
            details = [(_tenth(column), int(line)) for column, line, *_ in read.findall(detailed_caption(scene))]
            thirds = {f"{('top', '', 'bottom')[_third(line)]} {('left', '', 'right')[_third(column)]}".strip()
                      for column, line in details}
            assert question.answer.replace("middle", "") in thirds


def _tenth(column):
    return "ABCDEFGHIJ".index(column)


def _third(tenth):
    return 0 if tenth < 3 else 1 if tenth < 7 else 2


def test_every_caption_is_graded_right(scenes):
    assert all(caption_is_right(scene, caption(scene)) for scene in scenes)


@pytest.mark.parametrize(
    "text",
    [
        "a blue square and a red circle",
        " A red circle, and a dotted blue square. ",
        "a red circle and a blue square",
    ],
)
def test_order_texture_and_case_are_not_graded(text):
    assert caption_is_right(row(thing("circle", "red"), thing("square", "blue", "striped")), text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "a red square and a blue circle",
        "a red circle, a blue square and a green star",
        "a red circle, a red circle and a blue square",
        "a red circle and a blue circle",
        "a red circle and a square",
        "a red circle and a blue",
        "a red circle blue square",
        "a red circle and a blue green square",
        "a red circle and a blue square and",
    ],
)
def test_a_wrong_caption_is_rejected(text):
    assert not caption_is_right(row(thing("circle", "red"), thing("square", "blue", "striped")), text)


def test_a_caption_with_one_changed_word_is_rejected(scenes):
    for scene in scenes[:300]:
        words = re.findall(r"\w+|,", caption(scene))
        for place, other in itertools.product(range(len(words)), (*COLORS, *SHAPES, *NUMBERS)):
            if other != words[place]:
                assert not caption_is_right(scene, " ".join([*words[:place], other, *words[place + 1 :]]))


# Questions


def described(scene, words):
    """The objects that fit words such as "red circle", "red object", "star" or "digit"."""
    fitting = list(scene.objects)
    for word in words.split():
        if word in COLORS:
            fitting = [o for o in fitting if o.color == word]
        elif word == "digit":
            fitting = [o for o in fitting if o.shape in NUMBERS]
        elif word not in ("object", "objects"):
            fitting = [o for o in fitting if o.shape == SINGULAR.get(word, word)]
    return fitting


def the(scene, words):
    (found,) = described(scene, words)
    return found


def read_answer(scene, text):
    """The answer, read off the scene by the question's words alone."""
    if match := re.fullmatch(r"What color is the (.+)\?", text):
        return the(scene, match[1]).color
    if match := re.fullmatch(r"What shape is the (.+)\?", text):
        return the(scene, match[1]).shape
    if text == "Which digit is shown?":
        return the(scene, "digit").shape
    if match := re.fullmatch(r"How many (.+) are there\?", text):
        return NUMBERS[len(described(scene, match[1]))]
    if match := re.fullmatch(r"Is there (an?) (.+)\?", text):
        assert (match[1] == "an") == (match[2][0] in "aeiou" and match[2] != "one")
        return "yes" if described(scene, match[2]) else "no"
    if match := re.fullmatch(r"Is the (.+) small or large\?", text):
        return "small" if the(scene, match[1]).radius < 0.17 else "large"
    if match := re.fullmatch(r"Where is the (.+)\?", text):
        found = the(scene, match[1])
        assert all(abs(3 * at - border) >= 0.12 - 1e-9 for at in (found.x, found.y) for border in (1, 2))
        words = [("top", "", "bottom")[int(3 * found.y)], ("left", "", "right")[int(3 * found.x)]]
        return " ".join(filter(None, words)) or "middle"
    match = re.fullmatch(r"Is the (.+) (left of|right of|above|below) the (.+)\?", text)
    one, other = the(scene, match[1]), the(scene, match[3])
    gap = one.x - other.x if match[2] in ("left of", "right of") else one.y - other.y
    assert abs(gap) >= 0.15
    return "yes" if (gap < 0) == (match[2] in ("left of", "above")) else "no"


def test_every_answer_agrees_with_an_independent_reading_of_the_scene(asked):
    for scene, question in asked:
        assert question.answer == read_answer(scene, question.text), (scene, question)
        assert re.fullmatch(r"[a-z]+( [a-z]+){0,2}", question.answer)


def test_comparisons_are_different_answered_right_and_none_of_one_object(scenes):
    rng = np.random.default_rng(2)
    found = [(scene, question) for scene in scenes[:300] for question in comparisons(scene, rng, 5)]
    for scene in scenes[:300]:
        own = [question.text for of, question in found if of is scene]
        assert len(set(own)) == len(own) <= 5
        assert bool(own) == (len(scene.objects) > 1)
    kinds = [(question.kind, question.text.endswith(", by place?")) for _, question in found]
    assert all(0.05 < kinds.count((kind, by_place)) / len(kinds) < 0.5
               for kind in ("relation", "position") for by_place in (False, True))
    for scene, question in found:
        plain = question.text.replace(", by place?", "?")
        answer = read_answer(scene, plain)
        assert question.answer == (f"{question.places} {answer}" if plain != question.text else answer)


def test_the_places_before_an_answer_are_those_of_the_details_and_decide_it(scenes):
    rng = np.random.default_rng(2)
    for scene in scenes[:300]:
        details = re.findall(r"at ([A-J])([0-9])", detailed_caption(scene))
        for question in comparisons(scene, rng, 5):
            if question.kind == "position":
                assert tuple(question.places) in details
            else:
                placed = [tuple(place) for place in question.places.split(" ")]
                assert set(placed) <= set(details)
                one, other = (place[0 if re.search("left of|right of", question.text) else 1] for place in placed)
                assert one != other
                before = bool(re.search("left of|above", question.text)) == question.answer.endswith("yes")
                assert (one < other) == before


def test_the_places_of_a_question_are_those_of_the_objects_that_decide_it(asked):
    for scene, question in asked:
        details = dict(re.findall(r"at ([A-J][0-9]) an? (.*?) [A-J][0-9]", detailed_caption(scene)))
        places = question.places.split()
        assert set(places) <= set(details)
        if question.kind == "count":
            assert ["zero", "one", "two", "three"][len(places)] == question.answer
        elif question.kind == "exists":
            assert bool(places) == (question.answer == "yes")
        else:
            assert len(places) == (2 if question.kind == "relation" else 1)
        if question.kind in ("color", "shape", "size", "digit") and len(set(details)) == len(scene.objects):
            assert question.answer in details[places[0]]
        by_place = question.by_place()
        assert by_place.text == question.text.replace("?", ", by place?")
        assert by_place.answer.split() == [*places, *question.answer.split()]


def test_all_objects_are_asked_for_in_four_directions_and_three_ways():
    scene = row(thing("star", "red", x=0.21, y=0.95), thing("heart", "blue", x=0.55, y=0.15),
                thing("cross", "green", x=0.85, y=0.52))
    asked = orderings(scene, np.random.default_rng(0), 99)
    assert len({question.text for question in asked}) == len(asked) == 12
    assert {question.kind for question in asked} == {"order"}
    answers = {question.text: question.answer for question in asked}
    assert answers["Places from left to right?"] == "C F I"
    assert answers["Places from bottom to top?"] == "9 5 1"
    assert answers["Places of what is there from top to bottom?"] == "1 a blue heart 5 a green cross 9 a red star"
    assert answers["What is there from right to left?"] == "a green cross, a blue heart and a red star"
    some = orderings(scene, np.random.default_rng(1), 5)
    assert len(some) == 5
    assert set(some) < set(asked)


def test_a_direction_in_which_two_objects_share_a_tenth_is_not_asked_for():
    beside = row(thing("star", "red", x=0.2, y=0.51), thing("heart", "blue", x=0.8, y=0.59))
    texts = [question.text for question in orderings(beside, np.random.default_rng(0), 99)]
    assert len(texts) == 6
    assert not any("top" in text for text in texts)


def test_one_object_has_no_order():
    assert orderings(row(thing("star", "red")), np.random.default_rng(0), 3) == []


def test_every_kind_of_question_is_asked_with_all_its_answers(asked):
    answers = defaultdict(set)
    for _, question in asked:
        answers[question.kind].add(question.answer)
    assert answers == {
        "color": set(COLORS),
        "shape": set(SHAPES),
        "count": {"zero", "one", "two", "three"},
        "exists": {"yes", "no"},
        "position": {
            "left",
            "right",
            "top",
            "bottom",
            "middle",
            "top left",
            "top right",
            "bottom left",
            "bottom right",
        },
        "relation": {"yes", "no"},
        "size": {"small", "large"},
        "digit": set(NUMBERS[:7]),
    }


@pytest.mark.parametrize("kind", ["exists", "relation"])
def test_yes_and_no_are_balanced(asked, kind):
    counts = Counter(question.answer for _, question in asked if question.kind == kind)
    total = counts.total()
    assert abs(counts["yes"] - counts["no"]) < 3.5 * math.sqrt(total)  # 3.5 standard deviations of a fair coin


def test_every_object_that_is_denied_shares_a_word_with_the_scene(asked):
    for scene, question in asked:
        match = re.fullmatch(r"Is there an? (\w+) (\w+)\?", question.text)
        if match and question.answer == "no":
            assert described(scene, match[1]) or described(scene, match[2])


def test_questions_are_different_repeatable_and_as_many_as_asked(scenes):
    for scene in scenes[:200]:
        asked = questions(scene, np.random.default_rng(4), 6)
        assert asked == questions(scene, np.random.default_rng(4), 6)
        assert len({question.text for question in asked}) == 6


def test_an_answer_is_compared_without_case_and_space():
    question = Question("Where is the star?", "top left", "position")
    assert answer_is_right(question, " Top left\n")
    assert not answer_is_right(question, "left")


def test_texts_use_one_spelling(scenes, asked):
    texts = itertools.chain(map(caption, scenes), (question.text for _, question in asked))
    assert not any("colour" in text for text in texts)


def test_held_out_digits_are_in_no_question_either(asked):
    assert not any(re.search("seven|eight|nine", f"{question.text} {question.answer}") for _, question in asked)
