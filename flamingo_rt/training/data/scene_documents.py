"""Texts about drawn scenes as documents, made when they are read: stage 2 runs without a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from flamingo_rt.config import PromptsConfig
from flamingo_rt.training import scenes
from flamingo_rt.training.data.drawn_source import DrawnSource
from flamingo_rt.training.data.samples import Said, Sample


@dataclass(frozen=True)
class SceneDocuments(DrawnSource):
    """A `SampleSource` of documents: a scene's caption, questions and answers, one on each line."""

    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    kind: Literal["text"] = "text"

    def sample(self, index: int) -> Sample:
        """See `SampleSource.sample`."""
        return Sample(f"scene {index}", (Said("\n".join(texts_of_scene(self.seed, index, self.prompts))),))

    def fingerprint(self) -> str:
        """See `SampleSource.fingerprint`."""
        return f"texts about drawn scenes, seed {self.seed}"


def texts_of_scene(
    seed: int, index: int, prompts: PromptsConfig, split: scenes.Split = "train", questions: int = 4
) -> Iterator[str]:
    """The caption of scene ``index``, and up to so many questions with their answers, each after its prompt."""
    between = prompts.answer_separator
    rng = np.random.default_rng([seed, index] if split == "train" else [seed, index, 1])  # no scene is in both splits
    scene = scenes.sample_scene(rng, split)
    yield f"{prompts.caption}{between}{scenes.caption(scene)}"
    for question in scenes.questions(scene, rng, questions):
        yield f"{prompts.ask(question.text)}{between}{question.answer}"
