"""Tasks of drawn pictures for ``flamingo-rt evaluate task``: what a model can learn from its prompt alone.

- ``words``: four pairs of a colour and a shape, each with a word that means nothing; neither the words nor the pairs
  are in any training episode. Every group of queries has words of its own.
- ``textures``, ``counts``, ``alike``, ``characters``: the same of three textures, of one to three objects, of two
  objects of one colour (or shape) and of two, and of four drawn characters that are in no training picture.
- ``digits``: the handwritten digits 7, 8 and 9, of which no training picture is made, each with such a word. Queries
  are by other writers than shots.
- ``ten-digits``: all ten digits with words, and a support of twenty pictures each, for shots by nearness.
- ``motion``, ``motion-shuffled``, ``motion-still``: clips; which way something moves. The frames as they are, in an
  order at random, and one of them alone.
- ``opposite-shuffled``: the same of shuffled frames, between the two directions of the motion's axis.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_rt.training import scenes
from flamingo_rt.training.data.making import animated_png, png
from flamingo_rt.training.data.scene_clips import FRAMES, SIZE
from flamingo_rt.training.scenes.digits import HELD_OUT_DIGITS
from flamingo_rt.training.scenes.episodes import EpisodeKind, Maker, sample_classes
from flamingo_rt.training.scenes.nonce_words import nonce_words
from flamingo_rt.training.scenes.scene import sample_digit

GROUPS, QUERIES, SUPPORT = 20, 25, 8  # groups; queries of each; support of each class in a group
CLIPS = 300
KINDS: dict[str, tuple[EpisodeKind, int]] = {  # what words name, and how many of them
    "words": ("pair", 4), "textures": ("texture", 3), "counts": ("count", 3), "alike": ("same", 2),
    "characters": ("glyph", 4),
}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


@dataclass(frozen=True)
class Named:
    """A class: the word for it, and what makes a picture of it for a shot and for a query."""

    word: str
    shot: Maker
    query: Maker


def write_shot_tasks(folder: Path, seed: int = 0, groups: int = GROUPS, clips: int = CLIPS) -> dict[str, Path]:
    """Write all tasks; gives the TOML file of each by its name. ``groups`` of queries have words of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        **{name: _write_groups(folder / name, seed, [_words(seed, number, name) for number in range(groups)])
           for name in KINDS},
        "digits": _write_groups(folder / "digits", seed, [_digits(seed, number) for number in range(groups)]),
        "ten-digits": _write_groups(folder / "ten-digits", seed, [_digits(seed, groups, range(10))], 300, 20),
        **_write_clips(folder / "motion", seed, clips),
    }


def _words(seed: int, group: int, name: str = "words") -> list[Named]:
    (kind, count), place = KINDS[name], list(KINDS).index(name)
    rng = np.random.default_rng([seed, group, 0, place])
    makers = sample_classes(rng, "heldout", kind, count)
    return [Named(word, make, make) for word, make in zip(nonce_words(rng, "heldout", count), makers, strict=True)]


def _digits(seed: int, group: int, digits: Sequence[int] = HELD_OUT_DIGITS) -> list[Named]:
    words = nonce_words(np.random.default_rng([seed, group, 1]), "heldout", len(digits))
    return [Named(word, partial(sample_digit, split="train", digit=digit),
                  partial(sample_digit, split="heldout", digit=digit))
            for word, digit in zip(words, digits, strict=True)]


def _write_groups(
    folder: Path, seed: int, groups: Sequence[Sequence[Named]], queries: int = QUERIES, support: int = SUPPORT
) -> Path:
    """A task of classes: in each group ``queries`` pictures of classes in turn, and ``support`` of each class."""
    items: list[dict[str, Any]] = []
    drawn_from: list[dict[str, Any]] = []
    for number, classes in enumerate(groups):
        rng = np.random.default_rng([seed, number, 3])
        wanted = [(each, each.query, items) for each in itertools.islice(itertools.cycle(classes), queries)]
        wanted += [(each, each.shot, drawn_from) for each in classes for _ in range(support)]
        for count, (each, make, rows) in enumerate(wanted):
            name = f"{number:02}-{count:04}.png"
            picture = png(scenes.draw(make(rng), rng, SIZE))
            rows.append({"image": _write(folder, name, picture), "class": each.word, "group": f"{number:02}"})
    return _write_task(folder, "task", items, drawn_from)


def _write_clips(folder: Path, seed: int, count: int) -> dict[str, Path]:
    """The tasks of motion: one support, which shows the form of an answer alone."""
    rows: dict[str, list[dict[str, Any]]] = {"motion": [], "motion-shuffled": [], "motion-still": []}
    opposite: list[dict[str, Any]] = []
    rng = np.random.default_rng([seed, 4])
    for index in range(count):
        clip = scenes.clip(seed, index, "heldout", SIZE, FRAMES)
        still = np.repeat(clip.frames[rng.integers(FRAMES)][None], FRAMES, axis=0)
        changed = {"motion": clip.frames, "motion-shuffled": rng.permutation(clip.frames), "motion-still": still}
        for name, frames in changed.items():
            file = _write(folder, f"{name}-{index:04}.png", animated_png(frames))
            rows[name].append({"video": file, "class": clip.motion.direction})
        axis = "-".join(sorted((clip.motion.direction, OPPOSITE[clip.motion.direction])))
        opposite.append({"video": f"motion-shuffled-{index:04}.png", "class": clip.motion.direction, "group": axis})
    before = f"Question: {scenes.WHICH_WAY} Answer:"
    found = {name: _write_task(folder, name, items, items, before) for name, items in rows.items()}
    return {**found, "opposite-shuffled": _write_task(folder, "opposite-shuffled", opposite, opposite, before)}


def _write(folder: Path, name: str, content: bytes) -> str:
    path = folder / "pictures" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return name


def _write_task(
    folder: Path, name: str, items: Iterable[dict[str, Any]], support: Iterable[dict[str, Any]], before: str = ""
) -> Path:
    for kind, rows in (("items", items), ("support", support)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}-{kind}.jsonl").write_text(text, encoding="utf-8")
    file = folder / f"{name}.toml"
    lines = ['kind = "classes"', f'items = "{name}-items.jsonl"', f'support = "{name}-support.jsonl"',
             'images = "pictures"', *([f"before = {json.dumps(before)}"] if before else [])]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file
