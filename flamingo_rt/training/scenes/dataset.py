"""The endless data set: a picture by its number, the same in every process, so that workers can share the indices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flamingo_rt.training.scenes.descriptions import caption
from flamingo_rt.training.scenes.drawing import IMAGE_SIZE, draw
from flamingo_rt.training.scenes.scene import Scene, Split, sample_scene

# Part of the seed: the splits share no picture even under the same seed and index.
SPLIT_STREAM = {"train": 0, "heldout": 1}


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture, [size, size, 3] uint8 RGB, what stands in it, and its caption."""

    image: np.ndarray
    scene: Scene
    caption: str


def sample(seed: int, index: int, split: Split, size: int = IMAGE_SIZE) -> Sample:
    """Picture number ``index`` (0, 1, ...) of the stream ``seed``. Raises `UsageError` for an unknown split."""
    # An unknown split gets past this line for `sample_scene` to name it.
    rng = np.random.default_rng([seed, index, SPLIT_STREAM.get(split, 0)])
    scene = sample_scene(rng, split)
    return Sample(draw(scene, rng, size), scene, caption(scene))
