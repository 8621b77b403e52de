"""Drawn scenes: every text is checked against the scene by a reader that shares no code with the writer."""

import hashlib
import itertools
import math
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flamingo_rt.errors import DependencyError, UsageError
from flamingo_rt.training.scenes import (
    COLORS,
    NUMBERS,
    SHAPES,
    Background,
    Question,
    Scene,
    SceneObject,
    answer_is_right,
    caption,
    caption_is_right,
    detailed_caption,
    digits,
    draw,
    questions,
    sample,
    sample_scene,
)

SINGULAR = {plural: shape for shape, plural in SHAPES.items()}
PLAIN = Background("plain", (120, 120, 120), (120, 120, 120))


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(0)
    return [sample_scene(rng, "train") for _ in range(1500)]


@pytest.fixture(scope="module")
def asked(scenes):
    rng = np.random.default_rng(1)
    return [(scene, question) for scene in scenes for question in questions(scene, rng, 4)]


def thing(shape="circle", color="red", texture="plain", size="large", x=0.5, y=0.5, radius=0.2):
    return SceneObject(shape, color, texture, size, x, y, radius)


def row(*objects):
    return Scene(objects, PLAIN)


# Pictures


def test_a_sample_is_a_function_of_seed_index_and_split():
    first, again = sample(3, 5, "train"), sample(3, 5, "train")
    assert np.array_equal(first.image, again.image)
    assert (first.scene, first.caption) == (again.scene, again.caption)
    for other in (sample(4, 5, "train"), sample(3, 6, "train"), sample(3, 5, "heldout")):
        assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("size", [64, 192])
def test_a_picture_is_square_rgb_bytes(size):
    image = sample(0, 0, "train", size).image
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8


def test_every_shape_shows_its_color_at_its_place():
    for shape, color in itertools.product(SHAPES, COLORS):
        image = draw(row(thing(shape, color, x=0.3, y=0.7)), np.random.default_rng(0))
        # All shapes cover their centre. Brightness varies by 10 %, noise by 5 levels.
        np.testing.assert_allclose(image[134, 58], COLORS[color], atol=32, err_msg=f"{color} {shape}")
        np.testing.assert_allclose(image[30, 150], PLAIN.first, atol=20, err_msg=f"{color} {shape}")


@pytest.mark.parametrize("texture", ["striped", "dotted"])
def test_a_texture_changes_a_part_of_the_object_and_leaves_its_color_the_most_common(texture):
    for color in COLORS:
        image = draw(row(thing("circle", color, texture)), np.random.default_rng(0))
        inside = image[66:126, 66:126].reshape(-1, 3).astype(int)
        own = (np.abs(inside - COLORS[color]).max(axis=1) < 40).mean()
        assert 0.4 < own < 0.9, color


def test_a_handwritten_digit_is_drawn_in_its_color():
    index = next(index for index in digits.DIGIT_INDICES["train"] if digits.digit_label(index) == 1)
    digit = SceneObject("one", "blue", "plain", "large", 0.5, 0.5, 0.4)
    image = draw(Scene((digit,), PLAIN, index), np.random.default_rng(0)).astype(int)
    blue = np.abs(image - COLORS["blue"]).max(axis=2) < 40
    assert 0.05 < blue.mean() < 0.5


# Scenes


def test_objects_lie_inside_apart_from_each_other_and_from_left_to_right(scenes):
    for scene in scenes:
        assert 1 <= len(scene.objects) <= 3
        for placed in scene.objects:
            assert placed.radius < min(placed.x, placed.y, 1 - placed.x, 1 - placed.y)
        for left, right in itertools.combinations(scene.objects, 2):
            assert right.x - left.x >= 0.15
            assert math.dist((left.x, left.y), (right.x, right.y)) > left.radius + right.radius


def test_no_two_objects_of_a_scene_have_one_name(scenes):
    assert all(len({(o.color, o.shape) for o in scene.objects}) == len(scene.objects) for scene in scenes)


def test_every_word_and_every_number_of_objects_occurs(scenes):
    objects = [placed for scene in scenes for placed in scene.objects]
    assert {placed.color for placed in objects} == set(COLORS)
    assert {placed.shape for placed in objects} == {*SHAPES, *NUMBERS[:7]}, "7, 8 and 9 are in no training picture"
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3}
    # Three standard deviations of 1500 draws at 15 %.
    assert np.mean([scene.objects[0].is_digit for scene in scenes]) == pytest.approx(0.15, abs=0.028)


def test_objects_stand_out_from_their_background(scenes):
    for scene in scenes:
        for placed, end in itertools.product(scene.objects, (scene.background.first, scene.background.second)):
            assert math.dist(COLORS[placed.color], end) > 60


def test_train_and_heldout_digits_are_disjoint_and_carry_their_label():
    rng = np.random.default_rng(2)
    seen = defaultdict(set)
    for split in ("train", "heldout"):
        for scene in (sample_scene(rng, split) for _ in range(1000)):
            if scene.objects[0].is_digit:
                seen[split].add(scene.ink)
                assert scene.objects[0].shape == NUMBERS[digits.digit_label(scene.ink)]
    assert max(seen["train"]) < 1500 <= min(seen["heldout"])


def test_held_out_digits_are_in_no_question_either(asked):
    assert not any(re.search("seven|eight|nine", f"{question.text} {question.answer}") for _, question in asked)


@pytest.mark.parametrize("layout", ["wide", "single", "varied"])
def test_pictures_of_any_shape_hold_their_objects_apart(layout):
    shapes = set()
    for index in range(200):
        drawn = sample(0, index, "train", 64, layout)
        height, width = drawn.image.shape[:2]
        shapes.add((height, width))
        assert 0.49 < width / height < 2.05
        assert height * width == pytest.approx(64 * 64, rel=0.03)
        assert caption_is_right(drawn.scene, drawn.caption)
        centres = [(placed.x * width, placed.y * height) for placed in drawn.scene.objects]
        reach = [placed.radius * 64 for placed in drawn.scene.objects]
        for (x, y), radius in zip(centres, reach, strict=True):
            assert radius - 1 < min(x, y, width - x, height - y)
        for one, other in itertools.combinations(range(len(centres)), 2):
            assert math.dist(centres[one], centres[other]) > reach[one] + reach[other] - 1
    assert len(shapes) > 40


def test_a_shape_stands_where_its_scene_says_in_a_wide_picture():
    image = draw(replace(row(thing("circle", "red", x=0.8, y=0.3)), aspect=2.0), np.random.default_rng(0), 96)
    height, width = image.shape[:2]
    red = np.abs(image.astype(int) - COLORS["red"]).max(axis=2) < 40
    rows, columns = np.nonzero(red)
    assert (columns.mean() / width, rows.mean() / height) == pytest.approx((0.8, 0.3), abs=0.02)
    assert np.ptp(columns) == pytest.approx(np.ptp(rows), abs=2), "round"


def test_single_shapes_are_of_any_size():
    radii = [sample(0, index, "train", 64, "single").scene.objects[0].radius for index in range(300)]
    assert min(radii) < 0.09
    assert max(radii) > 0.4
    assert all(len(sample(0, index, "train", 64, "single").scene.objects) == 1 for index in range(20))


def test_an_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"'test'.*train, heldout"):
        sample(0, 0, "test")


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DependencyError, match=r"\[train\]"):
        digits._load.__wrapped__()  # past the cache that other tests have filled


# Captions


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
        "a large red circle at 2 7, a small striped blue square at 5 9 and a large orange star at 5 5"
    )
    assert detailed_caption(scene, {1: "up"}) == (
        "a large red circle at 2 7, a small striped blue square moving up at 5 9 and a large orange star at 5 5"
    )
    assert detailed_caption(row(thing("seven", "blue", x=0.41))) == "a handwritten seven in blue at 4 5"
    assert detailed_caption(row(thing("cross", "orange", size="any"))) == "an orange cross at 5 5"


def test_details_hold_the_caption_and_whatever_a_question_asks(scenes, asked):
    read = re.compile(r"an? (?:(small|large) )?(.*?) at ([0-9]) ([0-9])(?:, | and |$)")
    for scene in scenes[:300]:
        found = read.findall(detailed_caption(scene))
        assert [words for _, words, _, _ in found] == re.split(", | and ", re.sub(r"\ban? ", "", caption(scene)))
        for placed, (size, _, column, line) in zip(scene.objects, found, strict=True):
            assert size == ("" if placed.is_digit else placed.size)
            assert int(column) / 10 <= placed.x < (int(column) + 1) / 10
            assert int(line) / 10 <= placed.y < (int(line) + 1) / 10
    # The tenths alone decide where something is: 3 to 6 are the middle third of those that are asked about.
    for scene, question in asked:
        if question.kind == "position":
            details = [(int(column), int(line)) for _, _, column, line in read.findall(detailed_caption(scene))]
            thirds = {f"{('top', '', 'bottom')[_third(line)]} {('left', '', 'right')[_third(column)]}".strip()
                      for column, line in details}
            assert question.answer.replace("middle", "") in thirds


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


def test_the_same_picture_comes_out_of_another_process():
    code = (
        "import hashlib; from flamingo_rt.training.scenes import sample; "
        "print(hashlib.sha256(sample(1, 2, 'train').image.tobytes()).hexdigest())"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert ran.stdout.strip() == hashlib.sha256(sample(1, 2, "train").image.tobytes()).hexdigest()
