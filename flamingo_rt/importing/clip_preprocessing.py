"""Preprocessing settings beside a CLIP encoder: the transformers library's ``preprocessor_config.json``, and
``preprocess_cfg`` of open_clip.

Every key that changes the pixels becomes part of a `PreprocessingConfig`, or is refused with its value.
"""

from __future__ import annotations

from typing import Any

from flamingo_rt.config import Interpolation, PreprocessingConfig, Resize
from flamingo_rt.importing.settings import Settings, Triple
from flamingo_rt.presets import CLIP_PREPROCESSING

# Names of CLIP's processor in the transformers library's releases; those of other models resize in other ways.
PROCESSORS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor")
# Pillow's numbers, which the transformers library writes.
FILTERS: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
READ = (
    "image_processor_type", "feature_extractor_type", "do_resize", "size", "default_to_square", "resample",
    "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_pad",
    "pad_size", "do_convert_rgb",
)
# Keys about how a processor is called; they do not change pixels. (Pictures always become RGB here.)
IDLE = (
    "processor_class", "data_format", "input_data_format", "return_tensors", "device", "disable_grouping",
    "image_seq_length", "model_input_names", "transformers_version", "_valid_processor_keys", "_processor_class",
)
RESIZE_MODES: dict[str, Resize] = {"shortest": "crop", "longest": "pad", "squash": "squash"}


def processor_preprocessing(settings: Settings, image_size: int) -> PreprocessingConfig:
    """The preprocessing of the transformers library's CLIP processor, for pictures [image_size, image_size].

    Raises `DataError` that names the key of a setting that is not supported.
    """
    for key in ("image_processor_type", "feature_extractor_type"):
        settings.choice(key, PROCESSORS[0], PROCESSORS)
    settings.only((*READ, *IDLE))
    settings.must({"do_resize": True, "do_pad": False})
    settings.flag("do_convert_rgb", True)
    resample = settings.get("resample", 3)
    if type(resample) is not int or resample not in FILTERS:
        raise settings.refused("resample", f"known: {', '.join(f'{key} ({name})' for key, name in FILTERS.items())}")
    normalised = settings.flag("do_normalize", True)
    mean = settings.triple("image_mean", CLIP_PREPROCESSING.mean) if normalised else (0.0, 0.0, 0.0)
    std = _above_zero(settings, "image_std") if normalised else (1.0, 1.0, 1.0)
    # (255 factor x - mean) / std of x in 0..1 is (x - mean / (255 factor)) / (std / (255 factor)).
    scale = 255 * _rescale_factor(settings)
    return PreprocessingConfig(
        _resize_of_processor(settings, image_size), FILTERS[resample], _divided(mean, scale), _divided(std, scale)
    )


def _divided(values: Triple, by: float) -> Triple:
    first, second, third = (value / by for value in values)
    return first, second, third


def _rescale_factor(settings: Settings) -> float:
    if not settings.flag("do_rescale", True):
        return 1.0
    factor = settings.number("rescale_factor", 1 / 255)
    if not 1e-9 <= factor <= 1e9:
        raise settings.refused("rescale_factor", "a number above 0 was expected, such as 1/255")
    return factor


def _resize_of_processor(settings: Settings, image_size: int) -> Resize:
    """``crop`` where the short side is given and the centre is cropped, ``squash`` where both sides are given."""
    cropped = settings.flag("do_center_crop", True)
    expected = f"the encoder takes pictures of {image_size}x{image_size}"
    if cropped and settings.get("crop_size") is not None:
        crop = settings.get("crop_size")
        sides = _both_sides({"height": crop, "width": crop} if type(crop) is int else crop)
        if sides != (image_size, image_size):
            raise settings.refused("crop_size", expected)
    size = settings.get("size", image_size)
    if type(size) is int and settings.flag("default_to_square", False):
        size = {"height": size, "width": size}
    if type(size) is int:
        size = {"shortest_edge": size}
    if isinstance(size, dict):
        size = {key: side for key, side in size.items() if side is not None}
    if _both_sides(size) == (image_size, image_size):
        return "squash"
    if size != {"shortest_edge": image_size} or type(size["shortest_edge"]) is not int:
        raise settings.refused("size", f"{expected}: that as shortest_edge, or as height and width, can be imported")
    if not cropped:
        raise settings.refused("do_center_crop", "a picture whose short side alone is resized is not a square")
    return "crop"


def _both_sides(size: Any) -> tuple[int, int] | None:
    """(height, width) from an object with just these keys, or from a list of two; None for anything else."""
    sides: tuple[Any, ...] = ()
    if isinstance(size, dict) and size.keys() == {"height", "width"}:
        sides = (size["height"], size["width"])
    elif isinstance(size, list):
        sides = tuple(size)
    return (sides[0], sides[1]) if len(sides) == 2 and all(type(side) is int for side in sides) else None


def open_clip_preprocessing(settings: Settings, image_size: int) -> PreprocessingConfig:
    """The preprocessing of open_clip's transform for inference, for pictures [image_size, image_size].

    Raises `DataError` that names the key of a setting that is not supported.
    """
    settings.must({"mode": "RGB"})
    size = settings.get("size", image_size)
    if (_both_sides([size, size]) if type(size) is int else _both_sides(size)) != (image_size, image_size):
        raise settings.refused("size", f"the encoder takes pictures of {image_size}x{image_size}")
    # `random` picks one of the two in training; for inference open_clip takes bicubic.
    interpolation = settings.choice("interpolation", "bicubic", ("bicubic", "bilinear", "random"))
    resize = RESIZE_MODES[settings.choice("resize_mode", "shortest", tuple(RESIZE_MODES))]
    return PreprocessingConfig(
        resize, "bilinear" if interpolation == "bilinear" else "bicubic",
        settings.triple("mean", CLIP_PREPROCESSING.mean), _above_zero(settings, "std"),
        _fill(settings) if resize == "pad" else None,
    )


def _above_zero(settings: Settings, key: str) -> Triple:
    std = settings.triple(key, CLIP_PREPROCESSING.std)
    if min(std) <= 0:
        raise settings.refused(key, "numbers above 0 were expected")
    return std


def _fill(settings: Settings) -> Triple:
    """The colour that open_clip pads with, in 0..1; the file has one level from 0 to 255, or one for each channel."""
    fill = settings.get("fill_color", 0)
    levels = [fill] * 3 if type(fill) is int else fill
    known = isinstance(levels, list) and len(levels) == 3
    if not known or not all(type(level) is int and 0 <= level <= 255 for level in levels):
        raise settings.refused("fill_color", "a whole number from 0 to 255 was expected, or three")
    return levels[0] / 255, levels[1] / 255, levels[2] / 255
