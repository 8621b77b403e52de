"""Scenes: the objects of a picture and their places, before anything is drawn."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flamingo_rt.errors import UsageError
from flamingo_rt.training.scenes.digits import DIGIT_INDICES, TRAINED_DIGITS, digit_indices, digit_label
from flamingo_rt.training.scenes.scene_words import COLORS, NUMBERS, PLAIN_WHEN_SMALL, SHAPES, SIZES, TEXTURES

Split = Literal["train", "heldout"]
RGB = tuple[int, int, int]
BackgroundKind = Literal["plain", "gradient", "noise"]

DIGIT_SCENES = 0.15  # share of the scenes that are one handwritten digit
DIGIT_RADIUS = (0.3, 0.4)
COLUMN_GAP = 0.15  # least distance of two centres in x: "left to right" has one reading
MARGIN = 0.02  # free space around an object, of the image
ANY_SIZE = "any"  # the size of an object that is neither small nor large
GLYPH = "glyph"  # the shape of a drawn character
ANY_RADIUS = (0.07, 0.46)  # of a single shape of any size; the largest, where the short side has room for it
MIN_CONTRAST = 190.0  # `color_distance` of an object to its background; black to white is 765


@dataclass(frozen=True)
class SceneObject:
    """One object. ``x`` and ``y`` (downwards) are fractions of the picture's width and height, ``radius`` of the side
    of a square with the picture's area. ``shape`` may be a digit's word, or `GLYPH`."""

    shape: str
    color: str
    texture: str
    size: str
    x: float
    y: float
    radius: float

    @property
    def is_digit(self) -> bool:
        """Whether this is a handwritten digit."""
        return self.shape in NUMBERS

    @property
    def is_ink(self) -> bool:
        """Whether this is handwriting: a digit or a character of no alphabet."""
        return self.is_digit or self.shape == GLYPH


@dataclass(frozen=True)
class Background:
    """A surface between two colours; a plain one has only the first."""

    kind: BackgroundKind
    first: RGB
    second: RGB


@dataclass(frozen=True)
class Scene:
    """One to three objects from left to right. ``ink``: of a scene of handwriting which digit of the set it is, or
    which glyph; else None. ``aspect``: the picture's width over its height."""

    objects: tuple[SceneObject, ...]
    background: Background
    ink: int | None = None
    aspect: float = 1.0


def color_distance(a: RGB, b: RGB) -> float:
    """Perceived difference of two RGB colours, 0..765: the "redmean" approximation of CIELUV."""
    red_mean = (a[0] + b[0]) / 2
    red, green, blue = (x - y for x, y in zip(a, b, strict=True))
    return math.sqrt((2 + red_mean / 256) * red**2 + 4 * green**2 + (2 + (255 - red_mean) / 256) * blue**2)


def sample_scene(rng: np.random.Generator, split: Split, aspect: float = 1.0) -> Scene:
    """Draw a scene at random. ``split`` decides whose handwriting may appear; digits are `TRAINED_DIGITS`. Raises
    `UsageError` for an unknown split."""
    if split not in DIGIT_INDICES:
        raise UsageError(f"unknown split {split!r}; known: {', '.join(DIGIT_INDICES)}")
    background, colors = _sample_background(rng)
    if rng.random() < DIGIT_SCENES:
        return _sample_digit(rng, split, background, colors, TRAINED_DIGITS, aspect)
    return _scene_of(rng, int(rng.integers(1, 4)), background, colors, aspect)


def sample_single(rng: np.random.Generator, aspect: float = 1.0) -> Scene:
    """A scene of one shape of any size, `ANY_RADIUS`."""
    background, colors = _sample_background(rng)
    least, most = ANY_RADIUS
    most = min(most, min(sides(aspect)) / 2 - MARGIN)
    placed = sample_object(rng, colors, aspect, radius=float(np.exp(rng.uniform(math.log(least), math.log(most)))))
    return Scene((placed,), background, aspect=aspect)


def sample_of(rng: np.random.Generator, color: str | None, shape: str | None = None, texture: str | None = None,
              aspect: float = 1.0) -> Scene:
    """A scene of one shape that has what is given."""
    background, colors = _background_for(rng, color)
    placed = sample_object(rng, [color] if color else colors, aspect, shape, texture)
    return Scene((placed,), background, aspect=aspect)


def sample_objects(rng: np.random.Generator, count: int, aspect: float = 1.0) -> Scene:
    """A scene of so many shapes, one to three."""
    return _scene_of(rng, count, *_sample_background(rng), aspect)


def sample_digit(rng: np.random.Generator, split: Split, digit: int, aspect: float = 1.0) -> Scene:
    """A scene of one handwritten digit, of any of the ten."""
    background, colors = _sample_background(rng)
    return _sample_digit(rng, split, background, colors, (digit,), aspect)


def sample_glyph(rng: np.random.Generator, number: int, aspect: float = 1.0) -> Scene:
    """A scene of the character ``number``."""
    background, colors = _sample_background(rng)
    return Scene((_ink_object(rng, GLYPH, colors, aspect),), background, number, aspect)


def sides(aspect: float) -> tuple[float, float]:
    """Width and height of a picture of this shape that has the area 1."""
    return math.sqrt(aspect), 1 / math.sqrt(aspect)


def _background_for(rng: np.random.Generator, color: str | None) -> tuple[Background, list[str]]:
    """A background from which ``color`` stands out."""
    while True:
        background, colors = _sample_background(rng)
        if color is None or color in colors:
            return background, colors


def _sample_background(rng: np.random.Generator) -> tuple[Background, list[str]]:
    """A background and the colours that stand out from all of it, at least three."""
    while True:
        kind: BackgroundKind = ("plain", "gradient", "noise")[rng.integers(3)]
        first = _sample_surface(rng)
        second = first if kind == "plain" else _vary(rng, first)
        colors = [
            name
            for name, rgb in COLORS.items()
            if min(color_distance(rgb, first), color_distance(rgb, second)) >= MIN_CONTRAST
        ]
        if len(colors) >= 3:
            return Background(kind, first, second), colors


def _sample_surface(rng: np.random.Generator) -> RGB:
    """A light, a dark or a muted colour."""
    saturation, value = ((0.08, 0.94), (0.35, 0.16), (0.28, 0.55))[rng.integers(3)]
    rgb = colorsys.hsv_to_rgb(rng.random(), saturation * rng.random(), value + rng.uniform(-0.06, 0.06))
    return _rgb(255 * channel for channel in rgb)


def _vary(rng: np.random.Generator, color: RGB) -> RGB:
    """A neighbour of ``color``: visibly different, yet far from hiding an object."""
    shift = rng.choice((-1, 1)) * rng.uniform(25, 55)
    return _rgb(channel + shift + rng.uniform(-8, 8) for channel in color)


def _rgb(channels: Iterable[float]) -> RGB:
    red, green, blue = (int(min(max(channel, 0), 255)) for channel in channels)
    return red, green, blue


def _sample_digit(
    rng: np.random.Generator, split: Split, background: Background, colors: list[str], digits: tuple[int, ...],
    aspect: float,
) -> Scene:
    indices = digit_indices(split, digits)
    index = indices[rng.integers(len(indices))]
    return Scene((_ink_object(rng, NUMBERS[digit_label(index)], colors, aspect),), background, index, aspect)


def _ink_object(rng: np.random.Generator, shape: str, colors: list[str], aspect: float) -> SceneObject:
    radius = rng.uniform(*DIGIT_RADIUS) * min(sides(aspect))
    x, y = _place(rng, radius, aspect)
    return SceneObject(shape, str(rng.choice(colors)), "plain", "large", x, y, float(radius))


def _place(rng: np.random.Generator, radius: float, aspect: float) -> tuple[float, float]:
    """Centre of an object that lies within the picture, as fractions of its width and height."""
    places = rng.uniform(size=2)
    x, y = (float((radius + MARGIN + place * (side - 2 * (radius + MARGIN))) / side)
            for place, side in zip(places, sides(aspect), strict=True))
    return x, y


def _scene_of(
    rng: np.random.Generator, count: int, background: Background, colors: list[str], aspect: float
) -> Scene:
    # A crowded first object can leave no room for the others; then the layout starts again.
    while (objects := _sample_objects(rng, count, colors, aspect)) is None:
        pass
    return Scene(tuple(sorted(objects, key=lambda placed: placed.x)), background, aspect=aspect)


def _sample_objects(
    rng: np.random.Generator, count: int, colors: list[str], aspect: float
) -> list[SceneObject] | None:
    """``count`` objects apart from each other, or None where there is no room left."""
    placed: list[SceneObject] = []
    for _ in range(20):
        candidate = sample_object(rng, colors, aspect)
        if all(_apart(candidate, other, aspect) for other in placed):
            placed.append(candidate)
        if len(placed) == count:
            return placed
    return None


def sample_object(
    rng: np.random.Generator, colors: list[str], aspect: float, shape: str | None = None, texture: str | None = None,
    radius: float | None = None,
) -> SceneObject:
    """An object at random, but for what is given."""
    size = tuple(SIZES)[rng.integers(len(SIZES))]
    drawn = rng.uniform(*SIZES[size])
    if radius is not None:
        drawn = radius
        size = next((name for name, (least, most) in SIZES.items() if least <= radius <= most), ANY_SIZE)
    x, y = _place(rng, drawn, aspect)
    chosen, color = tuple(SHAPES)[rng.integers(len(SHAPES))], colors[rng.integers(len(colors))]
    shape = shape or chosen
    texture = texture or TEXTURES[rng.integers(len(TEXTURES))]
    smallest = 0 if shape not in PLAIN_WHEN_SMALL else SIZES["large"][0]
    if drawn < max(smallest, SIZES["small"][0]):
        texture = "plain"
    return SceneObject(shape, color, texture, size, x, y, float(drawn))


def _apart(a: SceneObject, b: SceneObject, aspect: float) -> bool:
    """Return whether two objects neither touch, nor share a column, nor have the same name."""
    width, height = sides(aspect)
    distance = math.hypot((a.x - b.x) * width, (a.y - b.y) * height)
    same_name = (a.shape, a.color) == (b.shape, b.color)
    return distance >= a.radius + b.radius + MARGIN and abs(a.x - b.x) >= COLUMN_GAP and not same_name
