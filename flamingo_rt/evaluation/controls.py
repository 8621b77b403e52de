"""Shots with something taken away: what is lost with it is what it had brought.

``shuffled``: the shots' pictures in another order. ``blank``: a grey picture. ``text``: no picture. ``labels``: each
answer becomes another one throughout. ``none`` leaves the shots as they are.
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


def _shuffled(shots: Sequence[Shot], rng: np.random.Generator) -> list[Shot]:
    """Pictures in an order at random: now and then one keeps its place, so that answers tell nothing of pictures. Were
    none to stay, a model that follows its shots would be wrong more often than by chance."""
    return [replace(shot, visual=shots[place].visual)
            for shot, place in zip(shots, rng.permutation(len(shots)), strict=True)]


def _relabelled(shots: Sequence[Shot], rng: np.random.Generator) -> list[Shot]:
    """Each answer becomes another one, the same in all shots that have it."""
    answers = list(dict.fromkeys(shot.answer for shot in shots))
    order = rng.permutation(len(answers))
    others = {answers[order[place]]: answers[order[place - 1]] for place in range(len(answers))}
    return [replace(shot, answer=others[shot.answer]) for shot in shots]


def blank_picture() -> Image:
    """A grey picture."""
    return Image(np.full((SIDE, SIDE, 3), GREY, dtype=np.uint8))


_CHANGES: dict[Control, Callable[[Sequence[Shot], np.random.Generator], list[Shot]]] = {
    "none": lambda shots, rng: list(shots),
    "shuffled": _shuffled,
    "blank": lambda shots, rng: [replace(shot, visual=blank_picture()) for shot in shots],
    "text": lambda shots, rng: [replace(shot, visual=None) for shot in shots],
    "labels": _relabelled,
}
CONTROLS: tuple[Control, ...] = tuple(_CHANGES)
NEEDS_TWO: tuple[Control, ...] = ("shuffled", "labels")  # a shot by itself has no other


def controlled(shots: Sequence[Shot], control: Control, *seed: int) -> list[Shot]:
    """The shots under a control; ``seed`` decides what is exchanged."""
    return _CHANGES[control](shots, np.random.default_rng(seed))
