"""Tasks of an evaluation: TOML files, lines of items, and the official files of COCO and VQAv2."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from small_model import small_config

from flamingo_rt.evaluation.controls import Shot
from flamingo_rt.evaluation.task_digest import task_digest
from flamingo_rt.evaluation.task_file import read_task
from flamingo_rt.evaluation.task_prompts import query_parts, shot_parts, visual_of, with_task_form

from ..corpus.tasks import CASES, FILE
from ..kind import Kind, Seeds, WrongAnswer
from ..mutators import json_text, raw
from ..sandbox import Sandbox

PICTURES = ("0.png", "COCO_val2014_000000000007.jpg")
LINES: dict[str, list[dict[str, Any]]] = {
    "caption": [{"image": "0.png", "text": "a cat"}, {"image": "0.png", "texts": ["a", "b"], "id": 7, "group": "g"}],
    "question": [{"image": "0.png", "question": "what?", "answers": ["a", "", "b"]},
                 {"question": "what?", "answer": "a", "group": 3}],
    "classes": [{"image": "0.png", "class": "red"}, {"image": "0.png", "class": "blue"}],
    "memes": [{"image": "0.png", "class": "no", "question": "so"}, {"image": "0.png", "class": "yes", "question": "a"}],
}
KEYS: dict[str, dict[str, Any]] = {
    "caption": {"kind": "caption", "metric": "cider", "beams": 3, "length_penalty": 0.5, "before": "Output:"},
    "question": {"kind": "question", "before": "Question: {} Answer:", "after": "\n", "max_new_tokens": 5, "name": "a"},
    "classes": {"kind": "classes", "classes": ["red", "blue"], "per_token": True, "images": "."},
    "memes": {"kind": "classes", "before": "is '{}' hateful?", "support_images": "."},
}
OFFICIAL: dict[str, dict[str, Any]] = {
    "coco.json": {"images": [{"id": 7, "file_name": PICTURES[1]}],
                  "annotations": [{"image_id": 7, "id": number, "caption": "a cat"} for number in range(2)]},
    "questions.json": {"data_type": "mscoco", "data_subtype": "val2014", "questions": [
        {"image_id": 7, "question_id": 70, "question": "what?"}]},
    "annotations.json": {"annotations": [{"image_id": 7, "question_id": 70, "answers": [
        {"answer": "a", "answer_id": number} for number in range(10)]}]},
}


def _toml(keys: dict[str, Any]) -> bytes:
    """A TOML file: JSON of texts, numbers and lists is TOML too."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()).encode()


def _seeds(folder: Path) -> Seeds:
    found = dict.fromkeys(PICTURES, b"") | {name: json.dumps(data).encode() for name, data in OFFICIAL.items()}
    for name, keys in KEYS.items():
        found[f"{name}.jsonl"] = "".join(json.dumps(line) + "\n" for line in LINES[name] * 2).encode()
        found[f"{name}.toml"] = _toml({**keys, "items": f"{name}.jsonl", "support": f"{name}.jsonl"})
    official = {"items": "coco.json", "support": "coco.json", "images": "."}
    found["coco.toml"] = _toml({"kind": "caption", **official})
    found["vqa.toml"] = _toml({"kind": "question", **dict.fromkeys(("items", "support"), [*OFFICIAL][1:]),
                               "images": "."})
    return found


def _write(rng: Random, seeds: Seeds, sandbox: Sandbox) -> None:
    files = dict(seeds)
    task = rng.choice(sorted(name for name in seeds if name.endswith(".toml")))
    files[FILE] = files[task]
    choice = rng.random()
    if choice < 0.2:
        files[FILE] = raw.mutate(rng, files[FILE])
    elif choice < 0.5:
        files[FILE] = _other_value(rng, files[FILE])
    elif task.removesuffix(".toml") in LINES:
        name = task.replace(".toml", ".jsonl")
        lines = files[name].split(b"\n")
        place = rng.randrange(len(lines) - 1)
        lines[place] = json_text.mutate(rng, lines[place])
        text = b"\n".join(lines)
        files[name] = raw.mutate(rng, text) if rng.random() < 0.1 else text
    else:
        name = "coco.json" if task == "coco.toml" else rng.choice([*OFFICIAL][1:])
        files[name] = json_text.mutate(rng, files[name])
    for name, data in files.items():
        (sandbox.input / name).write_bytes(data)


def _other_value(rng: Random, toml: bytes) -> bytes:
    """Another value for one of the keys."""
    lines = toml.splitlines()
    place = rng.randrange(len(lines))
    key, value = lines[place].split(b" = ", 1)
    lines[place] = key + b" = " + json_text.mutate(rng, value)
    return b"\n".join(lines)


def _run(sandbox: Sandbox) -> None:
    task = read_task(sandbox.input / FILE)
    if not task.items or not task.support or not task_digest(task):
        raise WrongAnswer("a task without items")
    config = with_task_form(small_config(), task)
    for item in task.items[:5]:
        shots = [Shot(visual_of(shot), shot.question, shot.answer) for shot in task.support_of(item.group)[:2]]
        if not shots or not shot_parts(config, shots, task.after) or not query_parts(config, item):
            raise WrongAnswer("a query without a prompt")
    print(task.name, *task.missing, task.chance, sep="\n")


TASKS = Kind("tasks", _seeds, _write, _run, CASES, first=120, share=0.3)
