"""Drawn scenes with their captions as a source of pairs, drawn when they are read: stage 1 runs without a file."""

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
        return Sample(name, (Visual("image", drawn.image, name), Said(drawn.caption)))

    def captions(self, count: int) -> Iterator[str]:
        """Captions of as many scenes of the same kind, none of which is drawn."""
        rng = np.random.default_rng(self.seed)
        for _ in range(count):
            yield scenes.caption(scenes.sample_scene(rng, self.split))

    def fingerprint(self) -> str:
        """See `SampleSource.fingerprint`."""
        return f"{self.count} drawn scenes of {self.split}, seed {self.seed}"
