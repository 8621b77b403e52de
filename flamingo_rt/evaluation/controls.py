"""Shots with something taken away: what is lost with it is what it had brought.

``shuffled``: each shot has the picture of another one. ``blank``: a grey picture. ``text``: no picture. ``labels``:
each shot has the answer of another one. ``none`` leaves the shots as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from flamingo_rt.processing.visuals import Image, Visual

Control = Literal["none", "shuffled", "blank", "text", "labels"]
GREY, SIDE = 128, 64


@dataclass(frozen=True)
class Shot:
    """An example: a picture or clip, or none, a question, or none, and the answer."""

    visual: Visual | None
    question: str | None
    answer: str


def _shuffled(shots: Sequence[Shot], seed: int) -> list[Shot]:
    pictures = _from_others([shot.visual for shot in shots], [shot.answer for shot in shots], seed)
    return [replace(shot, visual=picture) for shot, picture in zip(shots, pictures, strict=True)]


def _relabelled(shots: Sequence[Shot], seed: int) -> list[Shot]:
    answers = [shot.answer for shot in shots]
    return [replace(shot, answer=answer) for shot, answer in zip(shots, _from_others(answers, answers, seed),
                                                                 strict=True)]


def _from_others(values: Sequence, answers: Sequence[str], seed: int) -> list:
    """Each place gets the value of a place with another answer, as far as there are such: places sorted by answer, ties
    at random, are turned by as many as the commonest answer has."""
    count, ties = len(values), np.random.default_rng([seed, len(values)]).random(len(values))
    order = sorted(range(count), key=lambda place: (answers[place], ties[place]))
    turn = max((answers.count(answer) for answer in answers), default=0) % count if count else 0
    found = list(values)
    for position, place in enumerate(order):
        found[place] = values[order[(position + (turn or 1)) % count]]
    return found


def blank_picture() -> Image:
    """A grey picture."""
    return Image(np.full((SIDE, SIDE, 3), GREY, dtype=np.uint8))


_CHANGES: dict[Control, Callable[[Sequence[Shot], int], list[Shot]]] = {
    "none": lambda shots, seed: list(shots),
    "shuffled": _shuffled,
    "blank": lambda shots, seed: [replace(shot, visual=blank_picture()) for shot in shots],
    "text": lambda shots, seed: [replace(shot, visual=None) for shot in shots],
    "labels": _relabelled,
}
CONTROLS: tuple[Control, ...] = tuple(_CHANGES)
NEEDS_TWO: tuple[Control, ...] = ("shuffled", "labels")  # a shot by itself has no other


def controlled(shots: Sequence[Shot], control: Control, seed: int) -> list[Shot]:
    """The shots under a control; ``seed`` decides what is exchanged. One alone stays as it is under `NEEDS_TWO`."""
    return _CHANGES[control](shots, seed)
