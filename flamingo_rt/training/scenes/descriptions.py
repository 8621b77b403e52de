"""Descriptions of a scene: its caption, and questions with their answers.

Texts use American spelling ("color"), as public data sets do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from flamingo_rt.training.scenes.digits import TRAINED_DIGITS
from flamingo_rt.training.scenes.nonce_words import glyph_name
from flamingo_rt.training.scenes.scene import GLYPH, Scene, SceneObject
from flamingo_rt.training.scenes.scene_words import COLORS, NUMBERS, SHAPES, SIZES

QuestionKind = Literal["color", "shape", "count", "exists", "position", "relation", "size", "digit", "order"]
T = TypeVar("T")

BORDER_GAP = 0.04  # a position is asked only this far from a border between thirds
STYLES = ("short", "noun first", "colors", "shapes", "loud", "list", "seen")
DIGIT_WORDS = tuple(NUMBERS[digit] for digit in TRAINED_DIGITS)
DIRECTIONS = {  # the part of a place that decides, and whether the last comes first
    "left to right": (0, False), "right to left": (0, True), "top to bottom": (1, False), "bottom to top": (1, True),
}
COLUMNS = "ABCDEFGHIJ"  # of a picture, in its details
POSITIONS = 0.25  # share of the draws of comparisons that ask where one object is
RELATION_GAP = 0.15  # a relation is asked only for centres this far apart


@dataclass(frozen=True)
class Question:
    """A question about one scene; ``answer`` is one to three lower-case words, behind places where they are asked for,
    and of an ``order`` all objects or their places. ``places``, as the details give them, are those of the objects that
    the answer follows from; none where nothing is there, and of an ``order``."""

    text: str
    answer: str
    kind: QuestionKind
    places: str = ""

    def by_place(self) -> Question:
        """The question whose answer begins with the places, so that finding is learnt before judging."""
        return replace(self, text=f"{self.text[:-1]}, by place?", answer=f"{self.places} {self.answer}".lstrip())


def caption(scene: Scene) -> str:
    """The objects from left to right: ``a red circle, a striped blue square and a green star``."""
    return _listed([_phrase(placed) for placed in scene.objects])


def named_caption(scene: Scene) -> str:
    """The caption, with a drawn character's own name in place of what all of them are called."""
    placed = scene.objects[0]
    if placed.shape != GLYPH or scene.ink is None:
        return caption(scene)
    return f"a handwritten {glyph_name(scene.ink)} in {placed.color}"


def detailed_caption(
    scene: Scene, moving: Mapping[int, str] | None = None, order: Sequence[int] | None = None, turned: bool = False
) -> str:
    """All that can be asked about the objects: ``at C7 a small striped red circle C7``, with commas and ``and``
    between them, where letters A to J and figures 0 to 9 are the tenths of the picture's width and height that hold a
    centre. The place comes before and after its object: a causal reader that copies what follows finds the object by
    the place and the place by the object, as it can in a picture.

    ``moving``: directions by the numbers of the objects that move; ``at C7 a small red circle moving left C7``.
    ``order``: of the objects' numbers; from left to right without one. ``turned``: the second place as ``7C``, so that
    the line is what follows the object.
    """
    phrases = []
    for number in order if order is not None else range(len(scene.objects)):
        placed = scene.objects[number]
        words = _words(placed)
        if placed.size in SIZES and not placed.is_ink:
            words.insert(0, placed.size)
        if moving and number in moving:
            words += ["moving", moving[number]]
        place = _places([placed])
        phrases.append(f"at {place} {_with_article(' '.join(words))} {place[::-1] if turned else place}")
    return _listed(phrases)


def _place(placed: SceneObject) -> tuple[str, str]:
    """A letter and a figure, both of which sort from left to right and from top to bottom."""
    column, row = (min(9, int(10 * place)) for place in (placed.x, placed.y))
    return COLUMNS[column], str(row)


def _places(objects: Iterable[SceneObject]) -> str:
    """``C7 G3``."""
    return " ".join("".join(_place(placed)) for placed in objects)


def styled_caption(scene: Scene, style: str) -> str:
    """The objects from left to right in one of `STYLES`: ``short`` red circle; ``noun first`` circle, red; ``colors``
    red; ``shapes`` circle; ``loud`` RED CIRCLE!; ``list`` 1 red circle; ``seen`` I see a red circle."""
    short = [f"{placed.color} {placed.shape}" for placed in scene.objects]
    if style == "short":
        return " and ".join(short)
    if style == "noun first":
        return " and ".join(f"{placed.shape}, {placed.color}" for placed in scene.objects)
    if style == "colors":
        return " and ".join(placed.color for placed in scene.objects)
    if style == "shapes":
        return " and ".join(placed.shape for placed in scene.objects)
    if style == "loud":
        return " AND ".join(short).upper() + "!"
    if style == "list":
        return " ".join(f"{number} {text}" for number, text in enumerate(short, start=1))
    return f"I see {caption(scene)}"


def _listed(phrases: Sequence[str]) -> str:
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _phrase(placed: SceneObject) -> str:
    return _with_article(" ".join(_words(placed)))


def _words(placed: SceneObject) -> list[str]:
    if placed.is_ink:
        return ["handwritten", placed.shape, "in", placed.color]
    words = [placed.color, placed.shape]
    return words if placed.texture == "plain" else [placed.texture, *words]


def _with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' and phrase != 'one' else 'a'} {phrase}"


def questions(scene: Scene, rng: np.random.Generator, count: int) -> list[Question]:
    """Up to ``count`` different questions: each kind that fits the scene once, then each again.

    Going round by kind keeps yes and no in balance: a scene has many more wrong statements than right ones, and
    plain drawing without repeats would run out of the right ones first.
    """
    kinds = [_ask_digit, _ask_color, _ask_count, _ask_exists]
    if not scene.objects[0].is_digit:
        kinds = [_ask_color, _ask_shape, _ask_count, _ask_exists, _ask_position, _ask_relation, _ask_size]
    asked: dict[str, Question] = {}
    for _ in range(4 + count):  # rounds; a small scene may not have `count` different questions
        for turn in rng.permutation(len(kinds)):
            question = kinds[turn](scene, rng)
            if question is not None and len(asked) < count:
                asked.setdefault(question.text, question)
        if len(asked) >= count:
            break
    return list(asked.values())


def comparisons(scene: Scene, rng: np.random.Generator, count: int) -> list[Question]:
    """Up to ``count`` different questions about objects of a scene with several: `POSITIONS` of the draws ask where one
    is, the others which is left of, right of, above or below another; a fair coin asks for places first."""
    asked: dict[str, Question] = {}
    for _ in range(4 * count if len(scene.objects) > 1 else 0):
        question = _ask_position(scene, rng) if rng.random() < POSITIONS else _ask_relation(scene, rng)
        if question is not None:
            question = question.by_place() if rng.random() < 0.5 else question
            asked.setdefault(question.text, question)
    return list(asked.values())[:count]


def orderings(scene: Scene, rng: np.random.Generator, count: int) -> list[Question]:
    """Up to ``count`` different questions about all objects in one of four directions; none where there is one object.
    A direction in which the details give two objects the same place is not asked for.

    Each direction is asked for in three ways, from the easy to the hard: the letters or figures alone (``2 5``), each
    with its object (``2 a red star 5 a blue square``), and the objects. Of the last alone, a decoder learns directions
    that captions do not have too slowly."""
    asked: list[Question] = []
    for name, (axis, backwards) in DIRECTIONS.items():
        order = sorted(scene.objects, key=lambda placed: _place(placed)[axis], reverse=backwards)
        places, phrases = [_place(placed)[axis] for placed in order], [_phrase(placed) for placed in order]
        if 1 < len(places) == len(set(places)):
            both = (f"{place} {phrase}" for place, phrase in zip(places, phrases, strict=True))
            asked += [
                Question(f"Places from {name}?", " ".join(places), "order"),
                Question(f"Places of what is there from {name}?", " ".join(both), "order"),
                Question(f"What is there from {name}?", _listed(phrases), "order"),
            ]
    return [asked[number] for number in rng.permutation(len(asked))[:count]]


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _noun(placed: SceneObject) -> str:
    return "digit" if placed.is_digit else placed.shape


def _unique(scene: Scene, attribute: str) -> list[SceneObject]:
    """The objects whose ``attribute`` no other object has."""
    values = [getattr(placed, attribute) for placed in scene.objects]
    return [placed for placed in scene.objects if values.count(getattr(placed, attribute)) == 1]


def _reference(scene: Scene, placed: SceneObject, rng: np.random.Generator) -> str:
    """``the star`` where there is one star and the coin says so, else ``the red star``."""
    if placed in _unique(scene, "shape") and rng.random() < 0.5:
        return f"the {placed.shape}"
    return f"the {placed.color} {placed.shape}"


def _ask_color(scene: Scene, rng: np.random.Generator) -> Question | None:
    if not (candidates := _unique(scene, "shape")):
        return None
    placed = _pick(rng, candidates)
    return Question(f"What color is the {_noun(placed)}?", placed.color, "color", _places([placed]))


def _ask_shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    if not (candidates := _unique(scene, "color")):
        return None
    placed = _pick(rng, candidates)
    return Question(f"What shape is the {placed.color} object?", placed.shape, "shape", _places([placed]))


def _ask_digit(scene: Scene, rng: np.random.Generator) -> Question | None:
    return Question("Which digit is shown?", scene.objects[0].shape, "digit", _places(scene.objects))


def _ask_count(scene: Scene, rng: np.random.Generator) -> Question | None:
    form = rng.integers(3)
    if form == 0:
        return Question("How many objects are there?", NUMBERS[len(scene.objects)], "count", _places(scene.objects))
    # Half of the words come from the scene: drawn from the whole vocabulary, nearly every answer would be zero.
    shown = _pick(rng, scene.objects) if rng.random() < 0.5 else None
    if form == 1:
        shape = _pick(rng, tuple(SHAPES)) if shown is None or shown.is_digit else shown.shape
        found = [placed for placed in scene.objects if placed.shape == shape]
        return Question(f"How many {SHAPES[shape]} are there?", NUMBERS[len(found)], "count", _places(found))
    color = _pick(rng, tuple(COLORS)) if shown is None else shown.color
    found = [placed for placed in scene.objects if placed.color == color]
    return Question(f"How many {color} objects are there?", NUMBERS[len(found)], "count", _places(found))


def _ask_exists(scene: Scene, rng: np.random.Generator) -> Question | None:
    """A fair coin decides the answer first. A "no" about a pair is near the truth: one of its two words is right."""
    present = _pick(rng, scene.objects)
    shapes, colors = {placed.shape for placed in scene.objects}, {placed.color for placed in scene.objects}
    other_shapes = [shape for shape in (DIGIT_WORDS if present.is_digit else tuple(SHAPES)) if shape not in shapes]
    other_colors = [color for color in COLORS if color not in colors]
    answer = ("yes", "no")[rng.integers(2)]
    form = ("pair", "shape", "color")[rng.choice(3, p=(0.6, 0.2, 0.2))]
    shape, color = present.shape, present.color
    if answer == "no" and (form == "shape" or (form == "pair" and rng.random() < 0.5)):
        shape = _pick(rng, other_shapes)
    elif answer == "no":
        color = _pick(rng, other_colors)
    thing = {"pair": f"{color} {shape}", "shape": shape, "color": f"{color} object"}[form]
    found = [placed for placed in scene.objects
             if (form == "shape" or placed.color == color) and (form == "color" or placed.shape == shape)]
    return Question(f"Is there {_with_article(thing)}?", answer, "exists", _places(found))


def _ask_position(scene: Scene, rng: np.random.Generator) -> Question | None:
    placed = _pick(rng, scene.objects)
    column, row = _third(placed.x, "left", "right"), _third(placed.y, "top", "bottom")
    if column is None or row is None:
        return None
    answer = f"{row} {column}".strip() or "middle"
    return Question(f"Where is {_reference(scene, placed, rng)}?", answer, "position", _places([placed]))


def _third(value: float, first: str, last: str) -> str | None:
    """Name of the third that holds ``value``: ``first``, ``last``, or empty for the middle; None near a border."""
    if min(abs(value - 1 / 3), abs(value - 2 / 3)) < BORDER_GAP:
        return None
    return first if value < 1 / 3 else last if value > 2 / 3 else ""


def _ask_relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    """A fair coin decides the answer; the wording follows from it."""
    if len(scene.objects) < 2:
        return None
    one, other = (scene.objects[index] for index in rng.permutation(len(scene.objects))[:2])
    axis = rng.integers(2)
    gap = (one.x - other.x, one.y - other.y)[axis]
    if abs(gap) < RELATION_GAP:
        return None
    before, after = (("left of", "right of"), ("above", "below"))[axis]
    true, false = (before, after) if gap < 0 else (after, before)
    answer, relation = (("yes", true), ("no", false))[rng.integers(2)]
    names = _reference(scene, one, rng), _reference(scene, other, rng)
    return Question(f"Is {names[0]} {relation} {names[1]}?", answer, "relation", _places([one, other]))


def _ask_size(scene: Scene, rng: np.random.Generator) -> Question | None:
    placed = _pick(rng, scene.objects)
    if placed.size not in SIZES:
        return None
    return Question(f"Is {_reference(scene, placed, rng)} small or large?", placed.size, "size", _places([placed]))
