"""Grading of captions and answers: free wording, strict content."""

from __future__ import annotations

import re
from collections import Counter

from flamingo_rt.training.scenes.descriptions import Question
from flamingo_rt.training.scenes.scene import Scene
from flamingo_rt.training.scenes.scene_words import COLORS, NUMBERS, SHAPES

_NOUNS = {*SHAPES, *NUMBERS}


def caption_is_right(scene: Scene, text: str) -> bool:
    """Return whether ``text`` names every object's colour and shape, and no other. Order and texture are not graded."""
    return named_objects(text) == Counter((placed.color, placed.shape) for placed in scene.objects)


def named_objects(text: str) -> Counter[tuple[str, str]] | None:
    """The (colour, shape) pairs of a caption with their counts; None where a phrase has not one of each."""
    named: Counter[tuple[str, str]] = Counter()
    for phrase in re.split(r",\s*(?:and\b)?|\band\b", text.strip().lower().rstrip(".")):
        words = phrase.split()
        colors = [word for word in words if word in COLORS]
        nouns = [word for word in words if word in _NOUNS]
        if len(colors) != 1 or len(nouns) != 1:
            return None
        named[colors[0], nouns[0]] += 1
    return named


def answer_is_right(question: Question, text: str) -> bool:
    """Return whether ``text`` is the answer, apart from case and surrounding space."""
    return text.strip().lower() == question.answer
