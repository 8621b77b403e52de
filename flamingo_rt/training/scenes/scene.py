"""Scenes: the objects of a picture and their places, before anything is drawn."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flamingo_rt.errors import UsageError
from flamingo_rt.training.scenes.digits import DIGIT_INDICES, digit_label
from flamingo_rt.training.scenes.scene_words import COLORS, NUMBERS, PLAIN_WHEN_SMALL, SHAPES, SIZES, TEXTURES

Split = Literal["train", "heldout"]
RGB = tuple[int, int, int]
BackgroundKind = Literal["plain", "gradient", "noise"]

DIGIT_SCENES = 0.15  # share of the scenes that are one handwritten digit
DIGIT_RADIUS = (0.3, 0.4)
COLUMN_GAP = 0.15  # least distance of two centres in x: "left to right" has one reading
MARGIN = 0.02  # free space around an object, of the image
MIN_CONTRAST = 190.0  # `color_distance` of an object to its background; black to white is 765


@dataclass(frozen=True)
class SceneObject:
    """One object. ``x``, ``y`` (downwards), ``radius`` are fractions of the image; ``shape`` may be a digit's word."""

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


@dataclass(frozen=True)
class Background:
    """A surface between two colours; a plain one has only the first."""

    kind: BackgroundKind
    first: RGB
    second: RGB


@dataclass(frozen=True)
class Scene:
    """One to three objects from left to right. ``digit_index`` is the handwriting of a digit's scene, else None."""

    objects: tuple[SceneObject, ...]
    background: Background
    digit_index: int | None = None


def color_distance(a: RGB, b: RGB) -> float:
    """Perceived difference of two RGB colours, 0..765: the "redmean" approximation of CIELUV."""
    red_mean = (a[0] + b[0]) / 2
    red, green, blue = (x - y for x, y in zip(a, b, strict=True))
    return math.sqrt((2 + red_mean / 256) * red**2 + 4 * green**2 + (2 + (255 - red_mean) / 256) * blue**2)


def sample_scene(rng: np.random.Generator, split: Split) -> Scene:
    """Draw a scene at random. ``split`` decides whose handwriting may appear. Raises `UsageError` for an unknown
    one."""
    if split not in DIGIT_INDICES:
        raise UsageError(f"unknown split {split!r}; known: {', '.join(DIGIT_INDICES)}")
    background, colors = _sample_background(rng)
    if rng.random() < DIGIT_SCENES:
        return _sample_digit(rng, split, background, colors)
    count = int(rng.integers(1, 4))
    # A crowded first object can leave no room for the others; then the layout starts again.
    while (objects := _sample_objects(rng, count, colors)) is None:
        pass
    return Scene(tuple(sorted(objects, key=lambda placed: placed.x)), background)


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


def _sample_digit(rng: np.random.Generator, split: Split, background: Background, colors: list[str]) -> Scene:
    indices = DIGIT_INDICES[split]
    index = indices[rng.integers(len(indices))]
    radius = rng.uniform(*DIGIT_RADIUS)
    x, y = rng.uniform(radius + MARGIN, 1 - radius - MARGIN, size=2)
    word = NUMBERS[digit_label(index)]
    digit = SceneObject(word, str(rng.choice(colors)), "plain", "large", float(x), float(y), float(radius))
    return Scene((digit,), background, index)


def _sample_objects(rng: np.random.Generator, count: int, colors: list[str]) -> list[SceneObject] | None:
    """``count`` objects apart from each other, or None where there is no room left."""
    placed: list[SceneObject] = []
    for _ in range(20):
        candidate = _sample_object(rng, colors)
        if all(_apart(candidate, other) for other in placed):
            placed.append(candidate)
        if len(placed) == count:
            return placed
    return None


def _sample_object(rng: np.random.Generator, colors: list[str]) -> SceneObject:
    size = tuple(SIZES)[rng.integers(len(SIZES))]
    radius = rng.uniform(*SIZES[size])
    x, y = rng.uniform(radius + MARGIN, 1 - radius - MARGIN, size=2)
    shape, color = tuple(SHAPES)[rng.integers(len(SHAPES))], colors[rng.integers(len(colors))]
    texture = TEXTURES[rng.integers(len(TEXTURES))]
    if size == "small" and shape in PLAIN_WHEN_SMALL:
        texture = "plain"
    return SceneObject(shape, color, texture, size, float(x), float(y), float(radius))


def _apart(a: SceneObject, b: SceneObject) -> bool:
    """Return whether two objects neither touch, nor share a column, nor have the same name."""
    distance = math.hypot(a.x - b.x, a.y - b.y)
    same_name = (a.shape, a.color) == (b.shape, b.color)
    return distance >= a.radius + b.radius + MARGIN and abs(a.x - b.x) >= COLUMN_GAP and not same_name
