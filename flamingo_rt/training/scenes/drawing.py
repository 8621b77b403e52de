"""Drawing of a scene: anti-aliased shapes, textures, handwriting, background, light and sensor noise."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from flamingo_rt.errors import DependencyError
from flamingo_rt.training.scenes.digits import digit_ink
from flamingo_rt.training.scenes.glyphs import glyph_ink
from flamingo_rt.training.scenes.scene import GLYPH, Background, Scene, SceneObject, sides
from flamingo_rt.training.scenes.scene_words import COLORS

try:
    import cv2
except ImportError as error:
    raise DependencyError("drawing scenes needs OpenCV: pip install 'flamingo-rt[train]'") from error

IMAGE_SIZE = 192
SUBPIXEL_BITS = 4  # OpenCV takes polygon corners in sixteenths of a pixel
RIM = 0.01  # width of the untextured edge of a textured object, of the image: two thirds of a pixel of 64

# Largest rotation in degrees. A square turned by 45 is a diamond and a cross an x: both stay far from that.
TILT = {"circle": 0.0, "square": 12.0, "triangle": 12.0, "star": 18.0, "cross": 12.0, "heart": 15.0}


def draw(scene: Scene, rng: np.random.Generator, size: int = IMAGE_SIZE) -> np.ndarray:
    """The scene as [H, W, 3] uint8 RGB, of the scene's aspect and the area of ``size`` x ``size`` pixels. ``rng``
    decides tilt, texture phase, light and noise."""
    width, height = (round(side * size) for side in sides(scene.aspect))
    canvas = _background(scene.background, rng, width, height)  # [H, W, 3] float32, 0..255
    for placed in scene.objects:
        if placed.is_ink and scene.ink is not None:
            ink = glyph_ink(scene.ink, rng) if placed.shape == GLYPH else digit_ink(scene.ink)
            _paint_ink(canvas, placed, ink, size, rng)
        else:
            _paint_shape(canvas, placed, size, rng)
    canvas *= np.float32(rng.uniform(0.9, 1.06))
    canvas += rng.integers(-5, 6, size=canvas.shape, dtype=np.int8)
    return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)


def _background(background: Background, rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """The background as [H, W, 3] float32 in 0..255."""
    mix: np.ndarray  # [H, W] float32, share of the second colour
    if background.kind == "plain":
        mix = np.zeros((height, width), np.float32)
    elif background.kind == "gradient":
        angle = rng.uniform(0, 2 * math.pi)
        across, down = (np.linspace(-0.5, 0.5, side, dtype=np.float32) for side in (width, height))
        mix = 0.5 + (math.cos(angle) * across[None, :] + math.sin(angle) * down[:, None]) / math.sqrt(2)
    else:
        cells = int(rng.integers(10, 28))
        coarse = rng.random((cells, cells), dtype=np.float32)
        mix = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    # Plane by plane: NumPy is several times slower where the innermost axis is only three long.
    ends = zip(background.first, background.second, strict=True)
    return cv2.merge([first + mix * np.float32(second - first) for first, second in ends])


@cache
def _outline(shape: str) -> np.ndarray:
    """Corners [N, 2] float64 of a shape about the origin, y downwards, within a radius of about 1."""
    if shape == "circle":
        return _on_circle(48) * 0.9
    if shape == "square":
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.76
    if shape == "triangle":
        return _on_circle(3) + np.array((0, 0.12))
    if shape == "star":
        return _on_circle(10) * np.where(np.arange(10) % 2, 0.48, 1.06)[:, None]
    if shape == "cross":
        arm, reach = 0.35, 0.97
        corner = np.array([(-arm, -reach), (arm, -reach), (arm, -arm)])
        turns = [np.linalg.matrix_power(np.array([(0, 1), (-1, 0)]), turn) for turn in range(4)]
        return np.concatenate([corner @ turn for turn in turns])
    if shape == "heart":
        t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
        height = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.stack([16 * np.sin(t) ** 3, -height - 2.5], axis=1) / 16.5
    raise ValueError(f"no outline for the shape {shape!r}")


def _on_circle(count: int) -> np.ndarray:
    """``count`` points [count, 2] of the unit circle, clockwise from the top."""
    angle = 2 * math.pi * np.arange(count) / count
    return np.stack([np.sin(angle), -np.cos(angle)], axis=1)


def _paint_shape(canvas: np.ndarray, placed: SceneObject, size: int, rng: np.random.Generator) -> None:
    tilt = math.radians(rng.uniform(-1, 1) * TILT[placed.shape])
    corners = _outline(placed.shape) @ _rotation(tilt) * placed.radius * size
    patch, x, y = _patch(canvas, placed, 1.15, size)
    corners += (x, y)
    outline = [np.round(corners * (1 << SUBPIXEL_BITS)).astype(np.int32)]
    mask = np.zeros(patch.shape[:2], np.uint8)
    cv2.fillPoly(mask, outline, 255, cv2.LINE_AA, SUBPIXEL_BITS)
    paint = _rgb(placed.color)
    if placed.texture != "plain":
        share = _texture(placed, patch.shape[:2], (x, y), size, rng)
        # A rim in the object's own colour: pale stripes would open a shape's edge to a pale background.
        inside = mask.copy()
        cv2.polylines(inside, outline, True, 0, max(round(2 * RIM * size), 1), cv2.LINE_AA, SUBPIXEL_BITS)
        share *= inside / np.float32(255)
        paint = paint + share[:, :, None] * (_texture_tone(placed.color) - paint)
    patch += (mask[:, :, None] / np.float32(255)) * (paint - patch)


def _patch(
    canvas: np.ndarray, placed: SceneObject, reach: float, size: int
) -> tuple[np.ndarray, float, float]:
    """The part of the canvas around an object, a view, with the object's centre in it in pixels."""
    height, width = canvas.shape[:2]
    half, x, y = placed.radius * reach * size, placed.x * width, placed.y * height
    left, top = (max(int(centre - half), 0) for centre in (x, y))
    right, bottom = (min(math.ceil(centre + half) + 1, side) for centre, side in ((x, width), (y, height)))
    return canvas[top:bottom, left:right], x - left, y - top


def _rotation(angle: float) -> np.ndarray:
    """Matrix [2, 2] that turns row vectors."""
    return np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])


def _rgb(color: str) -> np.ndarray:
    """A colour of `COLORS`, [3] float32 in 0..255."""
    return np.array(COLORS[color], np.float32)


def _texture_tone(color: str) -> np.ndarray:
    """The colour of stripes and dots, [3] float32: lighter than a deep colour, darker than a bright one.

    Orange never gets darker: that would be brown.
    """
    paint = _rgb(color)
    if color == "black":
        return np.array((165, 165, 170), np.float32)
    if color in ("white", "yellow"):
        return paint * np.float32(0.5)
    return paint + np.float32(0.72) * (255 - paint)


def _texture(
    placed: SceneObject, shape: tuple[int, int], centre: tuple[float, float], size: int, rng: np.random.Generator
) -> np.ndarray:
    """Share of the second tone in each pixel of a patch, [height, width] float32 in 0..1."""
    angle = rng.uniform(0, math.pi)
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    columns, rows = (columns - centre[0]).astype(np.float32), (rows - centre[1]).astype(np.float32)
    across = math.cos(angle) * columns + math.sin(angle) * rows
    # A period of at least 5 pixels of 64 survives the downscaling; a larger object has a few more of them.
    period = max(0.5 * placed.radius, 5 / 64) * size
    across = np.abs((across / period + rng.random()) % 1 - 0.5) * period  # pixels to the nearest stripe's middle
    if placed.texture == "striped":
        return np.clip(0.22 * period - across + 0.5, 0, 1)
    along = math.cos(angle) * rows - math.sin(angle) * columns
    along = np.abs((along / period + rng.random()) % 1 - 0.5) * period
    return np.clip(0.29 * period - np.hypot(across, along) + 0.5, 0, 1)


def _paint_ink(
    canvas: np.ndarray, placed: SceneObject, ink: np.ndarray, size: int, rng: np.random.Generator
) -> None:
    """Paint ``ink`` [N, N] float32 in 0..1, smoothly enlarged to a square of side twice the radius."""
    patch, x, y = _patch(canvas, placed, 1.0, size)
    scale = 2 * placed.radius * size / ink.shape[0]
    turn = math.radians(rng.uniform(-8, 8))
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    middle = (ink.shape[0] - 1) / 2
    matrix = np.array([(cos, -sin, x - middle * (cos - sin)), (sin, cos, y - middle * (sin + cos))])
    smooth = cv2.warpAffine(ink, matrix, (patch.shape[1], patch.shape[0]), flags=cv2.INTER_CUBIC)
    # The few pixels of ink hold grey edges; a steep ramp about the middle turns them into a pen's line.
    mask = np.clip((smooth - 0.32) / 0.2, 0, 1)
    patch += mask[:, :, None] * (_rgb(placed.color) - patch)
