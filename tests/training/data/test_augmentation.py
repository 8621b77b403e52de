"""Changes of pictures in training, compared with their formulas."""

from __future__ import annotations

import colorsys

import numpy as np
import PIL.Image

from flamingo_rt.training.data.augmentation import HUE, STRENGTH, Augmentation

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)
PICTURE = PIL.Image.fromarray(PIXELS)


def changed(**change) -> np.ndarray:
    picture = Augmentation(**change)(PICTURE)
    assert (picture.mode, picture.size) == ("RGB", PICTURE.size)
    return np.asarray(picture).astype(int)


def test_no_change_leaves_the_picture() -> None:
    assert np.array_equal(changed(), PIXELS)


def test_a_flip_mirrors_left_and_right() -> None:
    assert np.array_equal(changed(flip=True), PIXELS[:, ::-1])


def test_colours_follow_their_formulas_within_a_level() -> None:
    values = PIXELS.astype(float)
    grey = values @ [0.299, 0.587, 0.114]
    expected = {
        "brightness": 1.2 * values,
        "contrast": grey.mean() + 1.2 * (values - grey.mean()),
        "saturation": grey[..., None] + 1.2 * (values - grey[..., None]),
    }
    for name, right in expected.items():
        assert np.abs(changed(**{name: 1.2}) - np.clip(right, 0, 255)).max() <= 1.5, name


def test_a_turn_of_the_hue_is_that_of_the_colour_wheel() -> None:
    turned = changed(hue=0.25)
    for place in [(0, 0), (3, 7), (11, 15)]:
        hue, saturation, value = colorsys.rgb_to_hsv(*(PIXELS[place] / 255))
        right = np.array(colorsys.hsv_to_rgb((hue + 0.25) % 1, saturation, value)) * 255
        assert np.abs(turned[place] - right).max() <= 8  # Pillow's hue has 256 steps


def test_changes_are_drawn_within_their_strength_and_half_are_flips() -> None:
    drawn = [Augmentation.drawn(np.random.default_rng(seed)) for seed in range(300)]
    assert drawn[7] == Augmentation.drawn(np.random.default_rng(7))
    assert 110 < sum(change.flip for change in drawn) < 190
    for name in ("brightness", "contrast", "saturation"):
        factors = [getattr(change, name) for change in drawn]
        assert 1 - STRENGTH <= min(factors) < 0.85 < 1.15 < max(factors) <= 1 + STRENGTH
    assert -HUE <= min(change.hue for change in drawn) < 0 < max(change.hue for change in drawn) <= HUE
