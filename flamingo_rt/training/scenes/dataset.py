"""The endless data set: a picture by its number, the same in every process, so that workers can share the indices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flamingo_rt.training.scenes.descriptions import caption
from flamingo_rt.training.scenes.drawing import IMAGE_SIZE, draw
from flamingo_rt.training.scenes.scene import Scene, Split, sample_scene, sample_single

# Part of the seed: the splits share no picture even under the same seed and index.
SPLIT_STREAM = {"train": 0, "heldout": 1}
VARIED_STREAM = 2
SQUARE, SINGLE = 0.4, 0.15  # shares of varied pictures: square ones, and ones of a single shape of any size
WIDEST = 2.0  # the largest aspect; the smallest is its inverse


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture, [H, W, 3] uint8 RGB, what stands in it, and its caption."""

    image: np.ndarray
    scene: Scene
    caption: str


def sample(seed: int, index: int, split: Split, size: int = IMAGE_SIZE) -> Sample:
    """Square picture number ``index`` (0, 1, ...) of the stream ``seed``. Raises `UsageError` for an unknown split."""
    # An unknown split gets past this line for `sample_scene` to name it.
    rng = np.random.default_rng([seed, index, SPLIT_STREAM.get(split, 0)])
    scene = sample_scene(rng, split)
    return Sample(draw(scene, rng, size), scene, caption(scene))


def varied_sample(seed: int, index: int, split: Split, size: int = IMAGE_SIZE) -> Sample:
    """Picture number ``index`` of the stream ``seed``, of any shape from 1:2 to 2:1 and the area of ``size`` x ``size``
    pixels; some show a single shape of any size. Raises `UsageError` for an unknown split."""
    rng = np.random.default_rng([seed, index, SPLIT_STREAM.get(split, 0), VARIED_STREAM])
    aspect = sample_aspect(rng)
    scene = sample_single(rng, aspect) if rng.random() < SINGLE else sample_scene(rng, split, aspect)
    return Sample(draw(scene, rng, size), scene, caption(scene))


def sample_aspect(rng: np.random.Generator) -> float:
    """A picture's width over its height: 1 for `SQUARE` of them, else from 1:2 to 2:1, evenly on a scale of ratios."""
    return 1.0 if rng.random() < SQUARE else float(WIDEST ** rng.uniform(-1, 1))
