"""The endless data set: a picture by its number, the same in every process, so that workers can share the indices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from flamingo_rt.training.scenes.descriptions import caption
from flamingo_rt.training.scenes.drawing import IMAGE_SIZE, draw
from flamingo_rt.training.scenes.scene import Scene, Split, sample_scene, sample_single

# Part of the seed: the splits share no picture even under the same seed and index.
SPLIT_STREAM = {"train": 0, "heldout": 1}
Layout = Literal["square", "wide", "single", "varied"]
LAYOUT_STREAM: dict[Layout, tuple[int, ...]] = {"square": (), "varied": (2,), "wide": (3,), "single": (4,)}
# Of the layouts that are not all square: the shares of square pictures, and of those with a single object of any size.
SHARES: dict[Layout, tuple[float, float]] = {"varied": (0.4, 0.15), "wide": (0.0, 0.0), "single": (0.0, 1.0)}
WIDEST = 2.0  # the largest aspect; the smallest is its inverse


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture, [H, W, 3] uint8 RGB, what stands in it, and its caption."""

    image: np.ndarray
    scene: Scene
    caption: str


def sample(seed: int, index: int, split: Split, size: int = IMAGE_SIZE, layout: Layout = "square") -> Sample:
    """Picture number ``index`` (0, 1, ...) of the stream ``seed``, with the area of ``size`` x ``size`` pixels.

    ``layout``: ``square`` pictures; ``wide``, of any shape from 1:2 to 2:1; ``single``, of any shape too, with a single
    object of any size; ``varied``, some of each, from which models learn. Raises `UsageError` for an unknown split.
    """
    # An unknown split gets past this line for `sample_scene` to name it.
    rng = np.random.default_rng([seed, index, SPLIT_STREAM.get(split, 0), *LAYOUT_STREAM[layout]])
    if layout == "square":
        scene = sample_scene(rng, split)
    else:
        square, single = SHARES[layout]
        aspect = sample_aspect(rng, square)
        scene = sample_single(rng, aspect) if rng.random() < single else sample_scene(rng, split, aspect)
    return Sample(draw(scene, rng, size), scene, caption(scene))


def sample_aspect(rng: np.random.Generator, square: float = SHARES["varied"][0]) -> float:
    """A picture's width over its height: 1 for the share ``square`` of them, else from 1:2 to 2:1, evenly on a scale of
    ratios."""
    return 1.0 if rng.random() < square else float(WIDEST ** rng.uniform(-1, 1))
