"""Drawn scenes with their captions as a source of pairs, drawn when they are read: stage 1 runs without a file.

Every second caption has all details: an encoder that learnt from the others alone would know no sizes and no heights,
since none of them tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flamingo_rt.training import scenes
from flamingo_rt.training.data.samples import FilePrint, Said, Sample, Visual

SIZE = 96  # the pictures have the area of a square of so many pixels


@dataclass(frozen=True)
class ScenePairs:
    """A `SampleSource` of ``count`` drawn scenes with their captions; there is no end of them."""

    seed: int
    split: scenes.Split = "train"
    count: int = 1_000_000
    kind: Literal["pairs"] = "pairs"
    files: tuple[FilePrint, ...] = ()

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int) -> Sample:
        """See `SampleSource.sample`."""
        drawn, name = scenes.sample(self.seed, index, self.split, SIZE, "varied"), f"scene {index}"
        return Sample(name, (Visual("image", drawn.image, name), Said(self._caption(drawn.scene, index))))

    def captions(self, count: int) -> Iterator[str]:
        """Captions of as many scenes of the same kind, none of which is drawn."""
        rng = np.random.default_rng(self.seed)
        for index in range(count):
            yield self._caption(scenes.sample_scene(rng, self.split), index)

    def _caption(self, scene: scenes.Scene, index: int) -> str:
        """Held-out scenes have short captions alone, so that a score says the same whatever was learnt from."""
        return scenes.detailed_caption(scene) if self.split == "train" and index % 2 else scenes.caption(scene)

    def fingerprint(self) -> str:
        """See `SampleSource.fingerprint`."""
        details = ", every second with details between two places" if self.split == "train" else ""
        return f"{self.count} drawn scenes of {self.split}{details}, seed {self.seed}"
