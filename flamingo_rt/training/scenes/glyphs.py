"""Drawn characters of no alphabet: as many classes of handwriting as are wanted, each with its variations.

A class is two to four strokes between points of a grid; a writing of it moves the points a little. Many rare classes
are what makes a model learn from its prompt instead of from its weights (Chan et al., arXiv 2205.05055).
"""

from __future__ import annotations

import numpy as np

from flamingo_rt.errors import DependencyError
from flamingo_rt.training.scenes.scene import Split

try:
    import cv2
except ImportError as error:
    raise DependencyError("drawing scenes needs OpenCV: pip install 'flamingo-rt[train]'") from error

CLASSES: dict[Split, range] = {"train": range(20_000), "heldout": range(20_000, 21_000)}
STROKES = (2, 4)  # the fewest and the most
WOBBLE = 0.09  # standard deviation of a point, of half of the character's side
SIDE = 16  # pixels of the ink: about what the handwritten digits resolve
_FINE = 8  # pixels in which one of those is drawn
_CLASS_STREAM = 4


def glyph_ink(number: int, rng: np.random.Generator) -> np.ndarray:
    """One writing of the character ``number``, ink [16, 16] float32 in 0..1; ``rng`` decides how it is written."""
    size = SIDE * _FINE
    canvas = np.zeros((size, size), np.uint8)
    thickness = int(rng.integers(9, 14))
    for stroke in _strokes(number):
        points = stroke + rng.normal(0, WOBBLE, stroke.shape)
        curve = (0.5 + 0.4 * _curve(points)) * size
        cv2.polylines(canvas, [np.round(curve).astype(np.int32)], False, 255, thickness, cv2.LINE_AA)
    return cv2.resize(canvas, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _strokes(number: int) -> list[np.ndarray]:
    """Control points [3, 2] in -1..1 of each stroke of a character."""
    rng = np.random.default_rng([number, _CLASS_STREAM])
    grid = np.array([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)], float)
    count = int(rng.integers(STROKES[0], STROKES[1] + 1))
    strokes = []
    begin = grid[rng.integers(len(grid))]
    for _ in range(count):
        end, middle = grid[rng.choice(len(grid), 2, replace=False)]
        if np.array_equal(begin, end):
            end = -end if end.any() else np.array((1.0, 1.0))
        strokes.append(np.stack([begin, middle, end]))
        begin = end if rng.random() < 0.6 else grid[rng.integers(len(grid))]  # most strokes go on where one ended
    return strokes


def _curve(points: np.ndarray) -> np.ndarray:
    """A quadratic Bézier curve, [12, 2], that begins and ends at the first and last of its points [3, 2]."""
    t = np.linspace(0, 1, 12)[:, None]
    return (1 - t) ** 2 * points[0] + 2 * t * (1 - t) * points[1] + t**2 * points[2]
