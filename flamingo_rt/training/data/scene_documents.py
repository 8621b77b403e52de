"""Texts about drawn scenes as documents, made when they are read: stage 2 runs without a file.

A document begins with all details of a scene, where a prompt has the picture. A decoder learns from it to find what a
question asks for; in stage 3, where it is frozen, pictures take the place of the details. What no text tells it does
not learn to look for; so the details come in any order, as a picture's do: from left to right, their order alone would
say which object is left of which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from flamingo_rt.config import PromptsConfig
from flamingo_rt.training import scenes
from flamingo_rt.training.data.drawn_source import DrawnSource
from flamingo_rt.training.data.samples import Said, Sample

MOVING = 0.1  # share of the documents in which an object moves
COMPARED = 0.8  # share of the others, where there are several objects, that ask for their places alone
QUESTIONS = 6  # in a document, at most
BY_PLACE = 0.3  # share of the questions beside a caption whose answers begin with places
COMPARISONS = 14  # where places are asked for
ORDERINGS = 1  # beside them, of at most 12
_DETAILS = 7  # part of the seed
Told = tuple[str, str]  # a prompt, and what follows it


@dataclass(frozen=True)
class SceneDocuments(DrawnSource):
    """A `SampleSource` of documents: a scene's details, then its caption, questions and answers in any order, one on
    each line. In some, an object moves, and the caption and a question are about that; most about several objects ask
    only for places: which object is left of or above which, and all in an order, with the places before the answers
    too, since yes and no alone teach that too slowly. Loss is taken on what follows from the details, a small part of
    the tokens: the rest, drawn at random, would drown it."""

    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    kind: Literal["text"] = "text"

    def sample(self, index: int) -> Sample:
        """See `SampleSource.sample`."""
        rng = np.random.default_rng([self.seed, index, _DETAILS])
        if rng.random() < MOVING:
            details, told = self._moving(rng)
        else:
            scene, asked = _scene_and_questions(self.seed, index, QUESTIONS)
            of_places = [*scenes.orderings(scene, rng, ORDERINGS), *scenes.comparisons(scene, rng, COMPARISONS)]
            if of_places and rng.random() < COMPARED:
                told = self._answered(of_places)
            else:
                asked = [question.by_place() if rng.random() < BY_PLACE else question for question in asked]
                told = [(self.prompts.caption, scenes.caption(scene)), *self._answered(asked)]
            details = scenes.detailed_caption(scene, order=_shuffled(scene, rng), turned=_coin(rng))
        segments = [Said(details, learnt=False)]
        for turn in rng.permutation(len(told)):
            prompt, answer = told[turn]
            segments += [Said(prompt, learnt=False), Said(self.prompts.answer_separator + answer, same_line=True)]
        return Sample(f"scene {index}", tuple(segments))

    def _answered(self, asked: list[scenes.Question]) -> list[Told]:
        return [(self.prompts.ask(question.text), question.answer) for question in asked]

    def _moving(self, rng: np.random.Generator) -> tuple[str, list[Told]]:
        scene, motion = scenes.sample_moving(rng, "train")
        return scenes.detailed_caption(scene, {motion.number: motion.direction}, _shuffled(scene, rng), _coin(rng)), [
            (self.prompts.caption, scenes.moving_caption(scene, motion)),
            (self.prompts.ask(scenes.WHICH_WAY), motion.direction),
        ]

    def fingerprint(self) -> str:
        """See `SampleSource.fingerprint`."""
        return ("details of drawn scenes in any order, texts about them, comparisons, whole and turned places, "
                f"seed {self.seed}")


def _shuffled(scene: scenes.Scene, rng: np.random.Generator) -> list[int]:
    return rng.permutation(len(scene.objects)).tolist()


def _coin(rng: np.random.Generator) -> bool:
    return bool(rng.random() < 0.5)


def texts_of_scene(
    seed: int, index: int, prompts: PromptsConfig, split: scenes.Split = "train", questions: int = 4
) -> Iterator[str]:
    """The caption of scene ``index``, and up to so many questions with their answers, each after its prompt."""
    scene, asked = _scene_and_questions(seed, index, questions, split)
    yield f"{prompts.caption}{prompts.answer_separator}{scenes.caption(scene)}"
    for question in asked:
        yield f"{prompts.ask(question.text)}{prompts.answer_separator}{question.answer}"


def _scene_and_questions(
    seed: int, index: int, count: int, split: scenes.Split = "train"
) -> tuple[scenes.Scene, list[scenes.Question]]:
    rng = np.random.default_rng([seed, index] if split == "train" else [seed, index, 1])  # no scene is in both splits
    scene = scenes.sample_scene(rng, split)
    return scene, scenes.questions(scene, rng, count)
