"""Episodes: pictures with answers that follow a rule which only the pictures before them tell.

A word that means nothing names a colour, a shape, a character, a digit, a texture, a count, or whether two things are
alike; or captions have one style; or one picture does not fit the others. Each episode has other words, so that no
weight can hold them: what is to be learnt is to look at the shots (Chan et al., arXiv 2205.05055).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from flamingo_rt.training.scenes.dataset import sample_aspect
from flamingo_rt.training.scenes.descriptions import STYLES, styled_caption
from flamingo_rt.training.scenes.digits import HELD_OUT_DIGITS, TRAINED_DIGITS
from flamingo_rt.training.scenes.glyphs import CLASSES
from flamingo_rt.training.scenes.nonce_words import nonce_words
from flamingo_rt.training.scenes.scene import Scene, Split, sample_digit, sample_glyph, sample_objects, sample_of
from flamingo_rt.training.scenes.scene_words import COLORS, SHAPES, TEXTURES

EpisodeKind = Literal["color", "shape", "pair", "texture", "digit", "glyph", "count", "same", "style", "odd"]
Maker = Callable[[np.random.Generator], Scene]

# Shares in which kinds are drawn.
SHARES: dict[EpisodeKind, float] = {
    "color": 0.12, "shape": 0.14, "pair": 0.22, "texture": 0.06, "digit": 0.12, "glyph": 0.18, "count": 0.04,
    "same": 0.04, "style": 0.05, "odd": 0.03,
}
CALLED = "What is this called?"
ODD = "Which picture is the odd one out?"
PLACES = ("first", "second", "third", "fourth")
ASKED = 0.3  # share of the episodes that ask `CALLED`; in the others an answer follows the caption's prompt
MOST_SHOTS = 24
HELD_OUT_PAIRS_EVERY = 7  # one in so many pairs of a colour and a shape is named in no training episode


@dataclass(frozen=True)
class Shot:
    """A picture with its answer, after a question, or after the caption's prompt. ``known``: whether the answer can be
    told from the shots before."""

    scene: Scene
    question: str | None
    answer: str
    known: bool


@dataclass(frozen=True)
class Episode:
    """Shots in order; the last is a query, whose answer is known."""

    kind: EpisodeKind
    shots: tuple[Shot, ...]


def named_pairs(split: Split) -> list[tuple[str, str]]:
    """The pairs of a colour and a shape that episodes of this split name."""
    pairs = itertools.product(enumerate(COLORS), enumerate(SHAPES))
    return [
        (color, shape) for (row, color), (column, shape) in pairs
        if ((row + 3 * column) % HELD_OUT_PAIRS_EVERY == 0) == (split == "heldout")
    ]


def sample_episode(rng: np.random.Generator, split: Split = "train") -> Episode:
    """An episode at random, with words, characters, digits and pairs of its split."""
    kind = list(SHARES)[rng.choice(len(SHARES), p=list(SHARES.values()))]
    if kind == "style":
        return _style_episode(rng, split)
    if kind == "odd":
        return _odd_episode(rng)
    most = 3 if kind in ("texture", "count") else 2 if kind == "same" else 5
    makers = sample_classes(rng, split, kind, int(rng.integers(2, most + 1)))
    words = nonce_words(rng, split, len(makers))
    question = CALLED if rng.random() < ASKED else None
    each = int(rng.integers(1, min(8, MOST_SHOTS // len(words)) + 1))
    order = rng.permutation(np.repeat(np.arange(len(words)), each))
    order = np.append(order, rng.integers(len(words)))
    seen: set[int] = set()
    shots = []
    for number in order.tolist():
        shots.append(Shot(makers[number](rng), question, words[number], number in seen))
        seen.add(number)
    return Episode(kind, tuple(shots))


def sample_classes(rng: np.random.Generator, split: Split, kind: EpisodeKind, count: int) -> list[Maker]:
    """Makers of pictures of ``count`` classes of a kind, which words can name; `texture` and `count` have 3, `same` 2.
    """

    def some(values: Sequence) -> list:
        return [values[index] for index in rng.choice(len(values), count, replace=False)]

    makers: list[Maker]
    if kind == "color":
        makers = [partial(_of, color=color) for color in some(tuple(COLORS))]
    elif kind == "shape":
        makers = [partial(_of, shape=shape) for shape in some(tuple(SHAPES))]
    elif kind == "texture":
        makers = [partial(_textured, texture=texture) for texture in some(TEXTURES)]
    elif kind == "pair":
        makers = [partial(_of, color=color, shape=shape) for color, shape in _pairs(rng, split, count)]
    elif kind == "digit":
        digits = TRAINED_DIGITS if split == "train" else HELD_OUT_DIGITS
        makers = [partial(_digit, split=split, digit=digit) for digit in some(digits)]
    elif kind == "glyph":
        makers = [partial(_glyph, number=number) for number in some(CLASSES[split])]
    elif kind == "count":
        makers = [partial(_several, count=number) for number in some((1, 2, 3))]
    else:
        attribute = ("color", "shape")[rng.integers(2)]
        makers = [partial(_two, attribute=attribute, alike=alike) for alike in some((True, False))]
    return makers


def _pairs(rng: np.random.Generator, split: Split, count: int) -> list[tuple[str, str]]:
    """Pairs of a colour and a shape. Half of the time near ones, so that neither the colour nor the shape is enough."""
    pairs = named_pairs(split)
    near = rng.random() < 0.5
    chosen = [pairs[rng.integers(len(pairs))]]
    while len(chosen) < count:
        others = [pair for pair in pairs if pair not in chosen]
        kin = [pair for pair in others if any(pair[0] == one[0] or pair[1] == one[1] for one in chosen)]
        pool = kin if near and kin else others
        chosen.append(pool[rng.integers(len(pool))])
    return chosen


def _of(rng: np.random.Generator, color: str | None = None, shape: str | None = None) -> Scene:
    return sample_of(rng, color, shape, aspect=sample_aspect(rng))


def _textured(rng: np.random.Generator, texture: str) -> Scene:
    while True:  # a small shape may have none
        scene = sample_of(rng, None, None, texture, sample_aspect(rng))
        if scene.objects[0].texture == texture:
            return scene


def _digit(rng: np.random.Generator, split: Split, digit: int) -> Scene:
    return sample_digit(rng, split, digit, sample_aspect(rng))


def _glyph(rng: np.random.Generator, number: int) -> Scene:
    return sample_glyph(rng, number, sample_aspect(rng))


def _several(rng: np.random.Generator, count: int) -> Scene:
    return sample_objects(rng, count, sample_aspect(rng))


def _two(rng: np.random.Generator, attribute: str, alike: bool) -> Scene:
    """Two objects, alike in an attribute or not."""
    while True:
        scene = sample_objects(rng, 2, sample_aspect(rng))
        one, other = (getattr(placed, attribute) for placed in scene.objects)
        if (one == other) == alike:
            return scene


def _style_episode(rng: np.random.Generator, split: Split) -> Episode:
    """Captions of one style; the first one shows it."""
    style = STYLES[rng.integers(len(STYLES))]
    shots = []
    for number in range(int(rng.integers(2, 9))):
        scene = sample_objects(rng, int(rng.integers(1, 3)), sample_aspect(rng))
        shots.append(Shot(scene, None, styled_caption(scene, style), number > 0))
    return Episode("style", tuple(shots))


def _odd_episode(rng: np.random.Generator) -> Episode:
    """Pictures that have a colour or a shape in common, but for one; which one is asked at the last picture."""
    count = int(rng.integers(3, len(PLACES) + 1))
    odd = int(rng.integers(count))
    by_color = rng.random() < 0.5
    common, other = rng.choice(tuple(COLORS if by_color else SHAPES), 2, replace=False).tolist()
    shots = []
    for number in range(count):
        value = other if number == odd else common
        scene = _of(rng, color=value) if by_color else _of(rng, shape=value)
        last = number == count - 1
        shots.append(Shot(scene, ODD if last else None, PLACES[odd if last else number], last))
    return Episode("odd", tuple(shots))
