"""A hash of all that a task's answers depend on, which tells a run that can go on from one that cannot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from flamingo_rt.bundle import sha256
from flamingo_rt.errors import DataError
from flamingo_rt.evaluation.task import Item, Task
from flamingo_rt.training.data.row_fields import shown

HASHED = {
    "model": "another model", "task": "another task: its keys, its items or their files are not the same",
}  # of what a run is about, where the values would say nothing


def task_digest(task: Task) -> str:
    """The items and the support, with what is in their files, and how they are asked: 16 hexadecimal digits. Raises
    `DataError` for a file that cannot be read."""
    content = cache(file_digest)  # questions share their pictures

    def told(pool: Sequence[Item]) -> list[tuple[Any, ...]]:
        return [(item.name, item.file and content(item.file), item.question, item.answers, item.group, item.clip)
                for item in pool]

    asked = (task.kind, task.classes, task.before, task.after, task.beams, task.length_penalty, task.max_new_tokens,
             task.per_token, sorted(task.group_classes.items()), told(task.items), told(task.support))
    return hashlib.sha256(repr(asked).encode()).hexdigest()[:16]


def file_digest(file: Path) -> str:
    """SHA-256 of a picture's or clip's file. Raises `DataError` where it cannot be read."""
    try:
        return sha256(file)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error


def header_of(about: Mapping[str, Any]) -> str:
    """The first line of a file of answers: all that they depend on."""
    return json.dumps(about, sort_keys=True)


def is_header(line: str) -> bool:
    """Whether a line is the first one of some run's answers."""
    return _header(line).keys() >= HASHED.keys()


def differences(line: str, about: Mapping[str, Any]) -> str:
    """Say in what a run with another first ``line`` differs from this one, such as "--select random, not balanced"."""
    before = _header(line)
    if before.keys() != about.keys():
        return "another model, task or options"
    return "; ".join(_difference(key, before[key], value) for key, value in about.items() if before[key] != value)


def _header(line: str) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


def _difference(key: str, before: Any, now: Any) -> str:
    if key in HASHED:
        return HASHED[key]
    option = f"--{key.replace('_', '-')}"
    if isinstance(now, bool):
        return f"{option}, which is left out now" if before else f"no {option}, which is given now"
    return f"{option} {before if isinstance(before, int) else shown(before).strip(chr(39))}, not {now}"
