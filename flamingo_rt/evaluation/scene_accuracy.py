"""Accuracy on drawn scenes that training has not seen: captions, and answers to questions.

Scenes come from a seed of their own, digits from samples held out of training. A caption is right when it names the
colour and shape of every object and nothing else; an answer is right when it equals the expected one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flamingo_rt.processing.prompt import Part
from flamingo_rt.processing.visuals import Image
from flamingo_rt.runtime.model import Model

if TYPE_CHECKING:
    from flamingo_rt.training.scenes import Layout

SEED = 20_261_123
BATCH = 16
LONGEST = 40  # tokens of an answer


@dataclass(frozen=True)
class SceneAccuracy:
    """One flag for each caption and each answer, true when it was right, by kind.

    Kinds of captions are ``digit``, ``1 object(s)`` and so on; those of questions ``color``, ``count`` and so on.
    """

    captions: dict[str, list[bool]]
    questions: dict[str, list[bool]]

    @property
    def caption_share(self) -> float:
        """Share of right captions, 0 to 1."""
        return _share(self.captions)

    @property
    def question_share(self) -> float:
        """Share of right answers, 0 to 1; not a number when no question was asked."""
        return _share(self.questions)


def _share(kinds: dict[str, list[bool]]) -> float:
    rights = [right for each in kinds.values() for right in each]
    return sum(rights) / len(rights) if rights else float("nan")


def scene_accuracy(
    model: Model, count: int, questions_each: int = 4, on_batch: Callable[[int], None] = lambda done: None,
    layout: Layout = "square",
) -> SceneAccuracy:
    """Ask ``model`` for a caption of each of ``count`` scenes, then up to ``questions_each`` questions about each.

    ``layout`` is the pictures' shape: see `flamingo_rt.training.scenes.sample`. ``on_batch`` is called with the number
    of prompts answered since the last call. Raises `DependencyError` without scikit-learn, whose digits are drawn, and
    whatever `Model.generate_batch` raises.
    """
    from flamingo_rt.training import scenes

    samples = [scenes.sample(SEED, index, "heldout", layout=layout) for index in range(count)]
    images = [Image(sample.image) for sample in samples]
    prompts = model.config.prompts
    answers = _answers(model, [[image, prompts.caption] for image in images], on_batch)
    captions: dict[str, list[bool]] = {}
    for sample, text in zip(samples, answers, strict=True):
        kind = "digit" if sample.scene.objects[0].is_digit else f"{len(sample.scene.objects)} object(s)"
        captions.setdefault(kind, []).append(scenes.caption_is_right(sample.scene, text))
    rng = np.random.default_rng(SEED)
    asked = [(i, q) for i, s in enumerate(samples) for q in scenes.questions(s.scene, rng, questions_each)]
    answers = _answers(model, [[images[i], prompts.ask(question.text)] for i, question in asked], on_batch)
    questions: dict[str, list[bool]] = {}
    for (_, question), text in zip(asked, answers, strict=True):
        questions.setdefault(question.kind, []).append(scenes.answer_is_right(question, text))
    return SceneAccuracy(captions, questions)


def _answers(model: Model, prompts: Sequence[list[Part]], on_batch: Callable[[int], None]) -> list[str]:
    """The greedy answers, in batches of `BATCH`, without surrounding space."""
    texts: list[str] = []
    for start in range(0, len(prompts), BATCH):
        results = model.generate_batch(prompts[start : start + BATCH], max_new_tokens=LONGEST)
        texts += [result.text.strip() for result in results]
        on_batch(len(results))
    return texts
