"""Pictures for an imported encoder are what its own library makes of them, whatever its configuration asks for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from benchmarks.peers.random_weights import random_picture
from flamingo_rt.config import FlamingoConfig, PreprocessingConfig
from flamingo_rt.importing.clip_preprocessing import open_clip_preprocessing, processor_preprocessing
from flamingo_rt.importing.settings import Settings
from flamingo_rt.presets import CLIP_PREPROCESSING, preset
from flamingo_rt.processing.preprocess import pixel_values

FIXTURE = np.load(Path(__file__).parent.parent / "fixtures" / "clip_processors.npz")
FILE = Path("clip/preprocessor_config.json")


def processor(image_size: int, **settings: object) -> PreprocessingConfig:
    return processor_preprocessing(Settings(FILE, settings), image_size)


def open_clip(image_size: int, **settings: object) -> PreprocessingConfig:
    return open_clip_preprocessing(Settings(FILE, settings), image_size)


@pytest.fixture(scope="module")
def processed() -> list[tuple[list[int], dict, np.ndarray]]:
    """Size of the picture, settings, and what transformers' CLIPImageProcessor makes of it, float32 [3, 8, 8]."""
    names = [json.loads(name) for name in FIXTURE["names"]]
    return [
        (name["picture"], name["settings"], values)
        for name, values in zip(names, FIXTURE["pixel_values"], strict=True)
    ]


def test_pictures_are_what_the_transformers_library_makes_of_them_with_every_combination_of_settings(processed) -> None:
    """Compare five kinds of sizes, six filters, three scales and three normalisations."""
    assert len(processed) == 5 * 6 * 3 * 3
    equal = []
    for (width, height), settings, expected in processed:
        config = processor(expected.shape[-1], **settings)
        found = pixel_values(PIL.Image.fromarray(random_picture(7, width, height)), config, expected.shape[-1])
        apart, level = np.abs(found - expected), 1 / 255 / min(config.std)
        assert apart.max() <= 1.01 * level, settings  # another Pillow may round a resized value differently
        equal.append((apart <= 1e-3 * level).mean())
    assert np.mean(equal) > 0.999


def test_the_combinations_make_different_pictures(processed) -> None:
    """Compare the combinations with each other: a setting that was ignored would show."""
    found = {values.tobytes() for (width, _), _, values in processed if width == 30}
    asked = {json.dumps(processor(8, **settings).__dict__) for (width, _), settings, _ in processed if width == 30}
    assert len(found) == len(asked) == 2 * 6 * 3 * 3 / 2  # two ways to resize; each picture has half of them


@pytest.mark.parametrize("size", [{"size": 28}, {"size": {"shortest_edge": 28}}, {"size": [28, 28]}, {}])
def test_a_size_in_each_of_its_forms_is_accepted(size: dict) -> None:
    expected = "squash" if size == {"size": [28, 28]} else "crop"
    assert processor(28, **size).resize == expected


def test_both_sides_are_squashed_and_a_crop_of_that_size_changes_nothing() -> None:
    square = {"height": 28, "width": 28}
    for cropped in ({"crop_size": square}, {"do_center_crop": False}, {}):
        assert processor(28, size=square, **cropped).resize == "squash"
    assert processor(28, size={**square, "shortest_edge": None}).resize == "squash"  # as the library writes it
    assert processor(28, do_center_crop=False, crop_size=224, size=square).resize == "squash"  # nothing is cropped


def test_settings_that_released_encoders_have_are_clips_own() -> None:
    openai = {
        "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor", "resample": 3, "size": 224,
        "image_mean": list(CLIP_PREPROCESSING.mean), "image_std": list(CLIP_PREPROCESSING.std),
    }
    newer = {
        **openai, "size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_rescale": True,
        "rescale_factor": 0.00392156862745098, "do_convert_rgb": True, "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor", "_valid_processor_keys": ["images", "do_resize"], "do_pad": None,
        "data_format": "channels_first", "device": None, "default_to_square": False, "use_square_size": False,
    }
    del newer["feature_extractor_type"]
    assert processor(224, **openai) == processor(224, **newer) == CLIP_PREPROCESSING


# open_clip: its transform written out (transform.py of 3.x, for inference), with Pillow


def open_clip_reference(picture: PIL.Image.Image, settings: dict, size: int) -> np.ndarray:
    """float64 [3, size, size]."""
    bilinear = settings.get("interpolation") == "bilinear"
    resample = PIL.Image.Resampling.BILINEAR if bilinear else PIL.Image.Resampling.BICUBIC
    width, height = picture.size
    if settings["resize_mode"] == "squash":
        picture = picture.resize((size, size), resample)
    else:
        ratio = max(width, height) / size
        picture = picture.resize((round(width / ratio), round(height / ratio)), resample)
        fill = settings.get("fill_color", 0)
        around = PIL.Image.new("RGB", (size, size), (fill,) * 3 if isinstance(fill, int) else tuple(fill))
        around.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
        picture = around
    mean, std = settings.get("mean", CLIP_PREPROCESSING.mean), settings.get("std", CLIP_PREPROCESSING.std)
    return ((np.asarray(picture) / 255 - mean) / std).transpose(2, 0, 1)


@pytest.mark.parametrize("resize_mode", ["squash", "longest"])
@pytest.mark.parametrize("settings", [
    {}, {"interpolation": "bilinear"}, {"interpolation": "random"}, {"fill_color": 128}, {"fill_color": [9, 128, 250]},
    {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "fill_color": 255},
])
@pytest.mark.parametrize("extent", [(60, 44), (20, 90), (28, 28), (9, 5)])
def test_open_clips_ways_to_resize_are_honoured(resize_mode: str, settings: dict, extent: tuple[int, int]) -> None:
    picture, asked = PIL.Image.fromarray(random_picture(3, *extent)), {"resize_mode": resize_mode, **settings}
    found = pixel_values(picture, open_clip(28, **asked), 28)
    np.testing.assert_allclose(found, open_clip_reference(picture, asked, 28), rtol=0, atol=2e-6)


def test_open_clips_shortest_is_clips_crop() -> None:
    assert open_clip(28, resize_mode="shortest", size=[28, 28], mode="RGB", fill_color=7) == CLIP_PREPROCESSING
    assert open_clip(28) == CLIP_PREPROCESSING


# Stored


def test_a_configuration_keeps_the_colour_of_the_padding_and_older_files_have_none() -> None:
    config = FlamingoConfig(preprocessing=open_clip(28, resize_mode="longest", fill_color=51))
    assert config.preprocessing.fill == (0.2, 0.2, 0.2)
    assert FlamingoConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    older = json.loads(json.dumps(preset("tiny").to_dict()))
    del older["preprocessing"]["fill"]
    assert FlamingoConfig.from_dict(older) == preset("tiny")
