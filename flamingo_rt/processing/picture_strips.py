"""From a decoded picture of any mode to 8-bit RGB over white, strip by strip: little memory beside the two pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import PIL.Image

from flamingo_rt.errors import DataError

STRIP_PIXELS = 2**18
UINT32_WHITE = 2**32 - 1
GUESSED_WHITES = (1, 255, 65535)  # candidates for modes I and F, where the file states none; 1 for F alone

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Samples:
    """The meaning of a decoded picture's values, where its mode does not determine it.

    ``whites``: for each band the value of white (of opaque, in alpha), in the units of the decoded picture; empty where
    it is the mode's greatest value, or not known (modes I and F). ``zero_is_white``: greys run downwards.
    ``outside``: a GIF's frame (left, top, right, bottom) and the colour of the screen around it.
    """

    whites: tuple[float, ...] = ()
    zero_is_white: bool = False
    outside: tuple[Box, tuple[int, int, int]] | None = None


def boxes(size: tuple[int, int]) -> Iterator[Box]:
    """Boxes (left, top, right, bottom) of at most `STRIP_PIXELS` that cover a picture of ``size`` (width, height)."""
    width, height = size
    columns = min(width, STRIP_PIXELS)
    rows = max(1, STRIP_PIXELS // columns)
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield left, top, min(left + columns, width), min(top + rows, height)


def is_plain(image: PIL.Image.Image, samples: Samples) -> bool:
    """Whether the decoded picture is 8-bit RGB without transparency."""
    return image.mode == "RGB" and "transparency" not in image.info and samples == Samples()


def rgb_over_white(image: PIL.Image.Image, samples: Samples, label: str) -> PIL.Image.Image:
    """A new RGB picture of a decoded one, over white where it is transparent; ``label`` is its name in errors.

    Deep greys are scaled linearly, their white to 255, see `_white`. Raises `DataError` for values of unknown
    brightness, and whatever Pillow raises for modes that it cannot convert.
    """
    convert = _converter(image, samples, label)
    picture = PIL.Image.new("RGB", image.size)
    for box in boxes(image.size):
        picture.paste(convert(image.crop(box)), box[:2])
    if samples.outside is not None:
        (left, top, right, bottom), colour = samples.outside
        width, height = picture.size
        for box in (0, 0, width, top), (0, bottom, width, height), (0, top, left, bottom), (right, top, width, bottom):
            picture.paste(colour, box)
    return picture


def _converter(image: PIL.Image.Image, samples: Samples, label: str) -> Callable[[PIL.Image.Image], PIL.Image.Image]:
    """A function that converts a strip of the picture to RGB, or grey, over white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        white = _white(image, samples, label)
        return lambda strip: _eight_bits(strip, white, samples.zero_is_white)
    if image.mode == "LAB":
        return _lab_converter()
    table = [min(255, round(value * 255 / white)) for white in samples.whites for value in range(256)]
    transparent = image.has_transparency_data

    def convert(strip: PIL.Image.Image) -> PIL.Image.Image:
        if table:
            strip = strip.point(table)
        if not transparent:
            return strip.convert("RGB")
        if strip.mode == "La":  # premultiplied; Pillow converts it to LA only
            strip = strip.convert("LA")
        strip = strip.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", strip.size, "white"), strip).convert("RGB")

    return convert


def _white(image: PIL.Image.Image, samples: Samples, label: str) -> float:
    """The value of white in a deep grey picture: as stated, 65535 for 16 bits, else the least of `GUESSED_WHITES` that
    no value exceeds.

    Raises `DataError` for values below 0, above white or not finite.
    """
    if samples.whites and image.mode != "F":
        return samples.whites[0]  # integers of a known width: no value is beyond it
    if image.mode.startswith("I;16"):
        return 65535
    candidates = samples.whites or (GUESSED_WHITES if image.mode == "F" else GUESSED_WHITES[1:])
    low, high = np.inf, -np.inf
    for box in boxes(image.size):
        strip = np.asarray(image.crop(box))
        low, high = np.minimum(low, strip.min()), np.maximum(high, strip.max())  # either is NaN where a value is
    for white in candidates:
        if low >= 0 and high <= white:
            return white
    raise DataError(
        f"{label} has values from {low:g} to {high:g} (mode {image.mode}), and which of them is white is not known: "
        f"0 to {' or 0 to '.join(f'{white:g}' for white in candidates)} are read; scale it to 8 bits first"
    )


def _eight_bits(strip: PIL.Image.Image, white: float, zero_is_white: bool) -> PIL.Image.Image:
    """A strip of a deep grey picture with 8 bits, mode L: 0 to ``white`` become 0 to 255, or 255 to 0."""
    values = np.asarray(strip)  # [H, W]
    if white == UINT32_WHITE:
        values = values.view(np.uint32)  # Pillow keeps unsigned 32-bit samples in a signed mode
    grey = np.rint(values * (255 / np.float64(white)))
    if zero_is_white:
        grey = 255 - grey
    transparent = strip.info.get("transparency")  # PNG: the transparent grey
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return PIL.Image.fromarray(grey.astype(np.uint8))


def _lab_converter() -> Callable[[PIL.Image.Image], PIL.Image.Image]:
    """A converter from CIE L*a*b* to sRGB, relative to D50 white, as in TIFF and ICC files."""
    from PIL import ImageCms  # loaded for such pictures alone

    transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


    def convert(strip: PIL.Image.Image) -> PIL.Image.Image:
        converted = ImageCms.applyTransform(strip, transform)  # None for what is changed in place, which this is not
        return strip if converted is None else converted

    return convert
