"""Episodes of drawn scenes as samples: pages with pictures for stage 3, and the same in words for stage 2."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from flamingo_rt.config import PromptsConfig
from flamingo_rt.training import scenes
from flamingo_rt.training.data.drawn_source import DrawnSource
from flamingo_rt.training.data.samples import Said, Sample, Segment, Visual

SIZE = 96  # the pictures have the area of a square of so many pixels
_STREAM, _TEXT_STREAM = 5, 6


@dataclass(frozen=True)
class SceneTasks(DrawnSource):
    """A `SampleSource` of episodes as pages: pictures, each with a prompt and its answer. Loss is taken on the
    answers that the pictures before tell."""

    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    kind: Literal["pages"] = "pages"

    def sample(self, index: int) -> Sample:
        """See `SampleSource.sample`."""
        rng, name = np.random.default_rng([self.seed, index, _STREAM]), f"episode {index}"
        segments: list[Segment] = []
        for shot in scenes.sample_episode(rng).shots:
            segments += [
                Visual("image", scenes.draw(shot.scene, rng, SIZE), name),
                Said(_prompt(shot, self.prompts), learnt=False),
                Said(self.prompts.answer_separator + shot.answer, learnt=shot.known),
            ]
        return Sample(name, tuple(segments))

    def fingerprint(self) -> str:
        """See `SampleSource.fingerprint`."""
        return f"episodes of drawn scenes, seed {self.seed}"


@dataclass(frozen=True)
class SceneTaskTexts(DrawnSource):
    """A `SampleSource` of episodes in words: what a picture shows, then its prompt and answer, line by line.

    Loss is taken as in `SceneTasks`. A decoder that learnt from them looks for what is like the query among the shots,
    and copies the word that stood there; pictures then take the place of the descriptions.
    """

    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    kind: Literal["text"] = "text"

    def sample(self, index: int) -> Sample:
        """See `SampleSource.sample`."""
        segments: list[Segment] = []
        for shot in scenes.sample_episode(np.random.default_rng([self.seed, index, _TEXT_STREAM])).shots:
            segments += [
                Said(scenes.named_caption(shot.scene), learnt=False),
                Said(_prompt(shot, self.prompts), learnt=False),
                Said(self.prompts.answer_separator + shot.answer, learnt=shot.known, same_line=True),
            ]
        return Sample(f"episode {index}", tuple(segments))

    def fingerprint(self) -> str:
        """See `SampleSource.fingerprint`."""
        return f"texts of episodes, answers learnt, seed {self.seed}"


def _prompt(shot: scenes.Shot, prompts: PromptsConfig) -> str:
    return prompts.caption if shot.question is None else prompts.ask(shot.question)
