"""Drawn clips as a source, drawn when they are read: half with a caption, half with a question about the motion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flamingo_rt.training import scenes
from flamingo_rt.training.data.drawn_source import DrawnSource
from flamingo_rt.training.data.samples import Said, Sample, Visual

SIZE = 96  # pixels of a side
FRAMES = 8


@dataclass(frozen=True)
class SceneClips(DrawnSource):
    """A `SampleSource` of clips in which one object moves."""

    kind: Literal["videos"] = "videos"

    def sample(self, index: int) -> Sample:
        """See `SampleSource.sample`."""
        clip, name = scenes.clip(self.seed, index, "train", SIZE, FRAMES), f"clip {index}"
        visual = Visual("video", clip.frames, name)
        if index % 2:
            return Sample(name, (visual, Said(scenes.WHICH_WAY), Said(clip.motion.direction)))
        return Sample(name, (visual, Said(clip.caption)))

    def fingerprint(self) -> str:
        """See `SampleSource.fingerprint`."""
        return f"drawn clips, seed {self.seed}"
