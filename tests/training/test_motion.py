"""Clips of moving objects: the caption says what is to be seen, and objects leave each other alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flamingo_rt.training.scenes import COLORS, Scene, caption, clip, named_objects
from flamingo_rt.training.scenes.motion import LEAST_PATH

TOWARDS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@pytest.fixture(scope="module")
def clips():
    return [clip(3, index, "train", 64, 4) for index in range(60)]


def places(drawn, share: float) -> list[tuple[float, float, float]]:
    return [(placed.x, placed.y, placed.radius) for placed in drawn.motion.at(drawn.scene, share).objects]


def test_the_named_object_goes_a_visible_way_in_the_named_direction_and_all_others_stay(clips) -> None:
    for drawn in clips:
        words, direction = drawn.caption.rsplit(" moves ", 1)
        begin, end = places(drawn, 0.0), places(drawn, 1.0)
        for number, (first, last) in enumerate(zip(begin, end, strict=True)):
            if number != drawn.motion.number:
                assert first == last
                continue
            way = last[0] - first[0], last[1] - first[1]
            length = sum(step * sign for step, sign in zip(way, TOWARDS[direction], strict=True))
            assert length >= LEAST_PATH - 1e-9
            assert math.isclose(math.hypot(*way), length)
        moving = drawn.scene.objects[drawn.motion.number]
        assert named_objects(words) == named_objects(caption(Scene((moving,), drawn.scene.background)))
    assert {drawn.motion.direction for drawn in clips} == set(TOWARDS)
    assert max(len(drawn.scene.objects) for drawn in clips) == 3


def test_objects_never_touch_each_other_or_the_border(clips) -> None:
    for drawn in clips:
        for share in np.linspace(0, 1, 21):
            found = places(drawn, float(share))
            for number, (x, y, radius) in enumerate(found):
                assert min(x, y, 1 - x, 1 - y) >= radius
                assert all(math.hypot(x - a, y - b) >= radius + other for a, b, other in found[:number])


def test_in_the_pixels_the_object_moves_and_the_background_does_not(clips) -> None:
    for drawn in clips[:10]:
        moving = drawn.scene.objects[drawn.motion.number]
        changed = (drawn.frames[0] != drawn.frames[-1]).any(axis=-1)
        assert 0.01 < changed.mean() < 0.5
        first, last = places(drawn, 0.0)[drawn.motion.number], places(drawn, 1.0)[drawn.motion.number]
        if moving.texture == "plain" and not moving.is_digit:
            for frame, (x, y, _) in ((drawn.frames[0], first), (drawn.frames[-1], last)):
                middle = frame[int(y * 64), int(x * 64)].astype(float)
                assert np.abs(middle - COLORS[moving.color]).max() < 40


def test_a_clip_is_a_function_of_its_seed_and_number() -> None:
    one, same, other = clip(1, 5, "heldout", 32, 2), clip(1, 5, "heldout", 32, 2), clip(1, 6, "heldout", 32, 2)
    assert np.array_equal(one.frames, same.frames)
    assert one.caption == same.caption
    assert not np.array_equal(one.frames, other.frames)
