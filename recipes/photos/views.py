"""Views of one picture: square crops of it, turned a little, before grounds of several kinds."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
from PIL.Image import Resampling, Transpose

from flamingo_rt.errors import DataError
from flamingo_rt.printable import printable

SIZE = 260  # pixels of each side: what the encoder takes
MOST_PIXELS = 520  # of the longer side before views are cut
MARGIN = 0.06  # of the longer side, around a picture
LEAST_AREA = 0.6  # of the square that a crop keeps
MOST_DEGREES = 12.0
ONE_WAY = frozenset(("left", "right", "sign", "calendar", "clock", "watch", "book", "newspaper", "keyboard", "note",
                     "notes", "clef", "ticket", "coin", "banknote", "map", "dvd", "abacus"))


def read_picture(file: Path) -> PIL.Image.Image:
    """A picture as RGBA, cut to what is not transparent, of at most `MOST_PIXELS` a side. Raises `DataError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # their content was checked
            with PIL.Image.open(file) as opened:
                picture = opened.convert("RGBA")
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        said = printable(str(error))
        raise DataError(f"{file} cannot be read as a picture ({said}): fetch its package anew") from error
    box = picture.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox()
    if box is None:
        raise DataError(f"{file} is wholly transparent: fetch its package anew")
    picture = picture.crop(box)
    if max(picture.size) > MOST_PIXELS:
        picture.thumbnail((MOST_PIXELS, MOST_PIXELS), Resampling.LANCZOS)
    return picture


def view(picture: PIL.Image.Image, number: int, seed: list[int], flip: bool = True) -> PIL.Image.Image:
    """View ``number`` of a picture from `read_picture`, RGB of `SIZE` a side.

    View 0 is the whole picture in the middle of a white square. Every other is turned, cropped and perhaps flipped
    (``flip`` allows it), before white, one colour or a gradient; the same ``seed`` and number give the same view.
    """
    if number == 0:
        return _on_ground(_squared(picture, MARGIN), np.full((SIZE, SIZE, 3), 255, np.uint8))
    rng = np.random.default_rng([*seed, number])
    if flip and rng.random() < 0.5:
        picture = picture.transpose(Transpose.FLIP_LEFT_RIGHT)
    turned = picture.rotate(rng.uniform(-MOST_DEGREES, MOST_DEGREES), Resampling.BICUBIC, expand=True)
    square = _squared(turned, rng.uniform(0.0, 0.15))
    side = square.width * math.sqrt(rng.uniform(LEAST_AREA, 1.0))
    left, top = rng.uniform(0, square.width - side, 2)
    crop = square.resize((SIZE, SIZE), Resampling.BICUBIC, (left, top, left + side, top + side))
    return _on_ground(crop, _ground(rng))


def may_be_flipped(name: str) -> bool:
    """Whether a thing of this name may look the same in a mirror: not what says left or right, or bears letters."""
    return not ONE_WAY & set(name.split())


def _squared(picture: PIL.Image.Image, margin: float) -> PIL.Image.Image:
    """A picture in the middle of a transparent square with a margin, a part of the longer side."""
    side = math.ceil(max(picture.size) * (1 + 2 * margin))
    square = PIL.Image.new("RGBA", (side, side), (255, 255, 255, 0))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def _ground(rng: np.random.Generator) -> np.ndarray:
    """A background, uint8 [SIZE, SIZE, 3]: white in a third of all, else one pale colour or a gradient of two."""
    kind = rng.integers(3)
    first, last = rng.integers(96, 256, (2, 3)).astype(np.float32)
    if kind == 0:
        first = last = np.full(3, 255, np.float32)
    elif kind == 1:
        last = first
    angle = rng.uniform(0, 2 * math.pi)
    across = np.linspace(-0.5, 0.5, SIZE, dtype=np.float32)
    rightwards, downwards = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    share = np.clip(0.5 + across[None, :] * rightwards + across[:, None] * downwards, 0, 1)
    return (first + (last - first) * share[..., None]).round().astype(np.uint8)


def _on_ground(picture: PIL.Image.Image, ground: np.ndarray) -> PIL.Image.Image:
    """A square RGBA picture before a background, as RGB of `SIZE` a side."""
    if picture.size != (SIZE, SIZE):
        picture = picture.resize((SIZE, SIZE), Resampling.BICUBIC)
    below = PIL.Image.fromarray(ground).convert("RGBA")
    return PIL.Image.alpha_composite(below, picture).convert("RGB")
