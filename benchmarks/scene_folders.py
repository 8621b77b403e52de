"""Folders of drawn scenes with a ``captions.jsonl`` of captions, of questions, or of both."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image

from flamingo_rt.training import scenes

Kind = Literal["captions", "questions"]


def write_scene_folder(
    folder: Path, count: int, kinds: Sequence[Kind] = ("captions",), split: scenes.Split = "train", seed: int = 0,
    size: int = 64, most_objects: int = 3,
) -> Path:
    """Write ``count`` pictures of ``size`` pixels, each with a line for its caption and one for a question about it, as
    ``kinds`` says. ``most_objects`` leaves out scenes with more objects, and digits where it is below 3."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, drawn in enumerate(chosen_scenes(count, split, seed, size, most_objects)):
        name = f"{number:05}.png"
        PIL.Image.fromarray(drawn.image).save(folder / name)
        lines += [json.dumps({"image": name, **said}) for said in _said(drawn, kinds, seed + number)]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def chosen_scenes(
    count: int, split: scenes.Split, seed: int, size: int, most_objects: int
) -> Iterator[scenes.Sample]:
    """The first ``count`` scenes of the stream ``seed`` that have few enough objects."""
    found = index = 0
    while found < count:
        drawn, index = scenes.sample(seed, index, split, size), index + 1
        objects = drawn.scene.objects
        if len(objects) <= most_objects and not (most_objects < 3 and objects[0].is_digit):
            found += 1
            yield drawn


def _said(drawn: scenes.Sample, kinds: Sequence[Kind], seed: int) -> Iterator[dict[str, Any]]:
    if "captions" in kinds:
        yield {"text": drawn.caption}
    if "questions" in kinds:
        for question in scenes.questions(drawn.scene, np.random.default_rng(seed), 1):
            yield {"question": question.text, "answer": question.answer}
