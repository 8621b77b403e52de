"""`pixel_values` against independent formulas: shapes, colours, positions, and CLIP's rounding."""

import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.peers.random_weights import random_picture
from flamingo_rt.config import PreprocessingConfig
from flamingo_rt.errors import DataError
from flamingo_rt.processing import preprocess
from flamingo_rt.processing.preprocess import pixel_values

CLIP = PreprocessingConfig(
    resize="crop", mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
)
FIXTURE = Path(__file__).parent.parent / "fixtures" / "clip_preprocessing.npz"
# One float32 subtraction and one division of values up to about 4: a few units in the last place.
FLOAT32 = {"rtol": 0, "atol": 1e-6}


def noise(width, height):
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def normalised(values, config):
    """float64 [H, W, 3] of 0..255 to [3, H, W]."""
    return ((values / 255.0 - np.array(config.mean)) / np.array(config.std)).transpose(2, 0, 1)


def clip_reference(picture, config, size):
    """torchvision 0.20: Resize(size), CenterCrop(size), ToTensor, Normalize, written out."""
    width, height = picture.size
    if width <= height:
        resized = picture.resize((size, int(size * height / width)), PIL.Image.Resampling.BICUBIC)
    else:
        resized = picture.resize((int(size * width / height), size), PIL.Image.Resampling.BICUBIC)
    values = np.asarray(resized)
    top = round((values.shape[0] - size) / 2.0)
    left = round((values.shape[1] - size) / 2.0)
    return normalised(values[top : top + size, left : left + size], config)


@pytest.mark.parametrize(("width", "height"), [(64, 48), (48, 64), (33, 101), (101, 33), (32, 32), (7, 5), (20, 640)])
@pytest.mark.parametrize("size", [32, 31])
def test_crop_is_clips_transform(width, height, size):
    picture = noise(width, height)
    np.testing.assert_allclose(pixel_values(picture, CLIP, size), clip_reference(picture, CLIP, size), **FLOAT32)


@pytest.mark.parametrize("name", np.load(FIXTURE).files)
def test_crop_is_what_the_transformers_library_makes_of_a_picture(name):
    """Resized values are whole numbers of 255 levels; another Pillow may round one of them differently."""
    width, height = map(int, name.split("x"))
    expected = np.load(FIXTURE)[name]
    found = pixel_values(PIL.Image.fromarray(random_picture(7, width, height)), CLIP, expected.shape[-1])
    level = 1 / 255 / min(CLIP.std)
    assert np.abs(found - expected).max() <= 1.01 * level
    assert (np.abs(found - expected) <= 1e-5).mean() > 0.999


def test_crop_of_a_square_of_the_right_size_changes_no_pixel():
    picture = noise(16, 16)
    np.testing.assert_allclose(pixel_values(picture, CLIP, 16), normalised(np.asarray(picture), CLIP), **FLOAT32)


@pytest.mark.parametrize(("width", "height"), [(3, 300), (300, 3), (20, 90)])
def test_crop_of_only_the_kept_part_is_the_same(width, height, monkeypatch):
    picture = noise(width, height).point(lambda value: 64 + value // 2)  # room for bicubic's overshoot, unclipped
    whole = pixel_values(picture, CLIP, 32)
    monkeypatch.setattr(preprocess, "MAX_RESIZED_PIXELS", 0)
    part = pixel_values(picture, CLIP, 32)
    # Pillow picks the order of its two passes by the extent and rounds to 8 bits between them: two steps of 255.
    np.testing.assert_allclose(part, whole, rtol=0, atol=2.01 / 255 / min(CLIP.std))


def test_crop_of_a_line_needs_no_giant_picture():
    values = pixel_values(PIL.Image.new("RGB", (1, 10_000), (255, 0, 0)), CLIP, 224)
    np.testing.assert_allclose(values, normalised(np.broadcast_to([255, 0, 0], (224, 224, 3)), CLIP), **FLOAT32)


def test_pad_centres_the_picture_and_pads_with_exactly_zero():
    config = PreprocessingConfig(mean=CLIP.mean, std=CLIP.std)
    values = pixel_values(PIL.Image.new("RGB", (40, 20), (255, 0, 51)), config, 32)
    assert not values[:, :8].any()
    assert not values[:, 24:].any()
    expected = normalised(np.broadcast_to([255, 0, 51], (16, 32, 3)), config)
    np.testing.assert_allclose(values[:, 8:24], expected, **FLOAT32)


def test_pad_keeps_every_pixel_of_a_picture_that_fits():
    picture = noise(16, 9)  # an odd remainder: 3 rows above, 4 below
    values = pixel_values(picture, PreprocessingConfig(), 16)
    np.testing.assert_allclose(values[:, 3:12], np.asarray(picture).transpose(2, 0, 1) / 127.5 - 1, **FLOAT32)
    assert not values[:, :3].any()
    assert not values[:, 12:].any()


def test_pad_of_a_portrait_pads_left_and_right():
    values = pixel_values(PIL.Image.new("RGB", (10, 40), "white"), PreprocessingConfig(), 32)
    assert (values[:, :, 12:20] == 1).all()
    assert values.sum() == 3 * 32 * 8


def test_squash_fills_the_square():
    picture = noise(50, 20)
    config = PreprocessingConfig(resize="squash", interpolation="bilinear")
    expected = np.asarray(picture.resize((32, 32), PIL.Image.Resampling.BILINEAR))
    np.testing.assert_allclose(pixel_values(picture, config, 32), normalised(expected, config), **FLOAT32)


def test_interpolation_is_the_configured_one():
    bicubic, bilinear = (
        pixel_values(noise(50, 20), PreprocessingConfig(interpolation=name), 32) for name in ("bicubic", "bilinear")
    )
    assert not np.array_equal(bicubic, bilinear)


@pytest.mark.parametrize("mode", ["pad", "crop", "squash"])
@given(width=st.integers(1, 60), height=st.integers(1, 60), size=st.integers(1, 40))
@settings(derandomize=True, max_examples=40, deadline=None, database=None)
def test_every_size_gives_a_finite_square(mode, width, height, size):
    values = pixel_values(noise(width, height), PreprocessingConfig(resize=mode), size)
    assert values.shape == (3, size, size)
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    assert math.isfinite(values.sum())


@pytest.mark.parametrize("mode", ["pad", "crop", "squash"])
@pytest.mark.parametrize("extent", [(1, 10_000), (10_000, 1), (1, 1)])
def test_extreme_aspects_keep_at_least_one_pixel(mode, extent):
    values = pixel_values(PIL.Image.new("RGB", extent, "white"), PreprocessingConfig(resize=mode), 224)
    assert values.shape == (3, 224, 224)
    assert (values[:, 112, 112] == 1).all() or (values[:, 111, 111] == 1).all()


@pytest.mark.parametrize("picture", [PIL.Image.new("L", (4, 4)), PIL.Image.new("RGB", (0, 4))], ids=["grey", "empty"])
def test_pictures_that_open_picture_never_gives_are_refused(picture):
    with pytest.raises(DataError, match="open_picture"):
        pixel_values(picture, CLIP, 8)
