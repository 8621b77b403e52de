"""How often is a model right about drawn scenes that training has not seen? The evaluation that ships with the trainer.

Scenes come from a seed of their own, digits from samples that training does not see. A caption is right when it names
colour and shape of every object and nothing else; an answer, when it is the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flamingo_rt.processing.visuals import Image
from flamingo_rt.runtime.model import Model

SEED = 20_261_123
BATCH = 16
LONGEST = 40  # tokens of an answer


@dataclass(frozen=True)
class SceneAccuracy:
    """Whether each caption and each answer was right, by kind: ``2 object(s)``, ``digit``; ``color``, ``count`` …"""

    captions: dict[str, list[bool]]
    questions: dict[str, list[bool]]

    @property
    def caption_share(self) -> float:
        """Right captions, 0 to 1."""
        return _share(self.captions)

    @property
    def question_share(self) -> float:
        """Right answers, 0 to 1."""
        return _share(self.questions)


def _share(kinds: dict[str, list[bool]]) -> float:
    return float(np.mean([right for rights in kinds.values() for right in rights]))


def scene_accuracy(
    model: Model, count: int, questions_each: int = 4, on_batch: Callable[[int], None] = lambda done: None
) -> SceneAccuracy:
    """Ask ``model`` for a caption of each of ``count`` scenes and for the answers to questions about it. ``on_batch``
    hears how many prompts were answered. Raises `DependencyError` without scikit-learn, which has the digits."""
    from flamingo_rt.training import scenes

    samples = [scenes.sample(SEED, index, "heldout") for index in range(count)]
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


def _answers(model: Model, prompts: list, on_batch: Callable[[int], None]) -> list[str]:
    texts: list[str] = []
    for start in range(0, len(prompts), BATCH):
        results = model.generate_batch(prompts[start : start + BATCH], max_new_tokens=LONGEST)
        texts += [result.text.strip() for result in results]
        on_batch(len(results))
    return texts
