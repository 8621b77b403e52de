"""A hash of all that a task's answers depend on, which tells a run that can go on from one that cannot."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from flamingo_rt.bundle import sha256
from flamingo_rt.errors import DataError
from flamingo_rt.evaluation.task import Item, Task


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
