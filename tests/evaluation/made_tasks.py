"""Task files that tests make, with items in every form. Pictures are empty files: reading a task opens none."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

QUESTION = {"image": "0.png", "question": "Is it red?", "answer": "yes"}


def touch(folder: Path, names: Iterable[str]) -> Path:
    """Empty files in a folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def pictures(folder: Path, count: int = 10) -> Path:
    """``0.png``, ``1.png`` and so on."""
    return touch(folder, (f"{index}.png" for index in range(count)))


def write_json(path: Path, data: Any) -> Path:
    """A JSON file of ``data``."""
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def write_task(folder: Path, **keys: Any) -> Path:
    """``task.toml`` with the keys that are not None: JSON of texts, numbers and lists is TOML too. ``support`` is
    ``items`` where it is not given."""
    if "items" in keys:
        keys = {"support": keys["items"], **keys}
    file = folder / "task.toml"
    lines = [f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in keys.items() if value is not None]
    file.write_text("".join(lines), encoding="utf-8")
    return file


def coco(pictures: Iterable[tuple[int, str]], captions: Iterable[tuple[int, str]]) -> dict[str, Any]:
    """An annotation file with the keys of COCO's ``captions_val2014.json``."""
    return {
        "info": {"description": "COCO 2014 Dataset", "version": "1.0", "year": 2014}, "licenses": [],
        "images": [{"license": 3, "file_name": file, "height": 360, "width": 640, "id": number}
                   for number, file in pictures],
        "annotations": [{"image_id": number, "id": 100 + index, "caption": text}
                        for index, (number, text) in enumerate(captions)],
    }


def vqa(entries: Iterable[tuple[int, int, str, list[str]]], subtype: str = "val2014") -> tuple[dict, dict]:
    """Questions and annotations with the keys of VQAv2's files, from (question id, picture, question, answers)."""
    head = {"info": {"version": "2.0"}, "license": {}, "data_type": "mscoco", "data_subtype": subtype}
    listed = list(entries)
    questions = [{"image_id": image, "question": text, "question_id": number} for number, image, text, _ in listed]
    annotations = [
        {
            "question_type": "none of the above", "multiple_choice_answer": answers[0] if answers else "",
            "answers": [{"answer": answer, "answer_confidence": "maybe", "answer_id": place}
                        for place, answer in enumerate(answers, start=1)],
            "image_id": image, "answer_type": "other", "question_id": number,
        }
        for number, image, _, answers in listed
    ]
    return {**head, "task_type": "Open-Ended", "questions": questions}, {**head, "annotations": annotations}
