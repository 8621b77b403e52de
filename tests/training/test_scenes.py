"""Drawn scenes: their pictures show what they hold, apart from each other, in every layout."""

from __future__ import annotations

import hashlib
import itertools
import math
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_scenes import PLAIN, drawn_scenes, row, thing

from flamingo_rt.errors import DependencyError, UsageError
from flamingo_rt.training.scenes import (
    COLORS,
    NUMBERS,
    SHAPES,
    Scene,
    SceneObject,
    caption_is_right,
    digits,
    draw,
    sample,
    sample_scene,
)


@pytest.fixture(scope="module")
def scenes():
    return drawn_scenes()


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


def test_the_same_picture_comes_out_of_another_process():
    code = (
        "import hashlib; from flamingo_rt.training.scenes import sample; "
        "print(hashlib.sha256(sample(1, 2, 'train').image.tobytes()).hexdigest())"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert ran.stdout.strip() == hashlib.sha256(sample(1, 2, "train").image.tobytes()).hexdigest()
