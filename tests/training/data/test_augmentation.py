"""Changes of pictures in training, compared with their formulas, one after the other."""

from __future__ import annotations

import cmath
import math

import numpy as np
import PIL.Image
import pytest

from flamingo_rt.training.data.augmentation import HUE, STRENGTH, TO_YIQ, Augmentation

PIXELS = np.random.default_rng(0).integers(60, 190, (12, 16, 3)).astype(np.uint8)  # nothing is cut at black or white
LUMA = [0.299, 0.587, 0.114]


def changed(pixels: np.ndarray = PIXELS, **change) -> np.ndarray:
    source = PIL.Image.fromarray(pixels)
    picture = Augmentation(**change)(source)
    assert (picture.mode, picture.size) == ("RGB", source.size)
    assert np.array_equal(np.asarray(source), pixels)
    return np.asarray(picture).astype(int)


def test_no_change_leaves_the_picture() -> None:
    assert np.array_equal(changed(), PIXELS)


def test_a_flip_mirrors_left_and_right() -> None:
    assert np.array_equal(changed(flip=True), PIXELS[:, ::-1])


@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_factors_follow_their_formulas_within_a_level(factor) -> None:
    values = PIXELS.astype(float)
    grey = (values @ LUMA)[..., None]
    assert np.abs(changed(brightness=factor) - factor * values).max() <= 1
    assert np.abs(changed(contrast=factor) - (grey.mean() + factor * (values - grey.mean()))).max() <= 1
    assert np.abs(changed(saturation=factor) - (grey + factor * (values - grey))).max() <= 1


def test_all_changes_together_are_one_after_the_other() -> None:
    change = {"saturation": 1.2, "hue": 0.02, "contrast": 0.9, "brightness": 1.1}
    slowly = PIXELS
    for name, value in change.items():
        slowly = changed(slowly.astype(np.uint8), **{name: value})
    assert np.abs(changed(**change) - slowly).max() <= 4  # each of four roundings moves a value by half a level


def test_a_turn_of_the_hue_turns_colours_around_grey() -> None:
    def colour(pixel) -> complex:
        return complex(*(TO_YIQ @ pixel)[1:])

    turned = changed(hue=0.1)
    assert np.abs(turned @ LUMA - PIXELS @ LUMA).max() <= 1
    vivid = [(row, column) for row in range(12) for column in range(16) if abs(colour(PIXELS[row, column])) > 40]
    assert len(vivid) > 10
    for place in vivid:
        angle = cmath.phase(colour(turned[place]) / colour(PIXELS[place]))
        assert abs(angle - 2 * math.pi * 0.1) < 0.05
    greys = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    assert np.abs(changed(greys, hue=0.3, saturation=1.2) - greys).max() <= 1


def test_too_bright_values_are_white() -> None:
    assert changed(np.full((1, 1, 3), 250, np.uint8), brightness=1.2).tolist() == [[[255] * 3]]


def test_changes_are_drawn_within_their_strength_and_half_are_flips() -> None:
    drawn = [Augmentation.drawn(np.random.default_rng(seed)) for seed in range(300)]
    assert drawn[7] == Augmentation.drawn(np.random.default_rng(7))
    assert 110 < sum(change.flip for change in drawn) < 190
    for name in ("brightness", "contrast", "saturation"):
        factors = [getattr(change, name) for change in drawn]
        assert 1 - STRENGTH <= min(factors) < 0.85 < 1.15 < max(factors) <= 1 + STRENGTH
    assert -HUE <= min(change.hue for change in drawn) < 0 < max(change.hue for change in drawn) <= HUE
