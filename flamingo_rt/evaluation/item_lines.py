"""Items in a ``.jsonl`` file, one a line.

A line has ``image`` or ``video``, beside it ``text`` or ``texts`` for captions, ``question`` with ``answer`` or
``answers`` for questions, which may be about no picture, ``class`` for classes; an ``id`` and a ``group`` where they
are wanted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from flamingo_rt.evaluation.item_pool import Row
from flamingo_rt.evaluation.task import TaskKind
from flamingo_rt.printable import printable
from flamingo_rt.training.data.json_lines import JsonLines
from flamingo_rt.training.data.row_fields import shown
from flamingo_rt.training.data.samples import DamagedSample

ANSWERS: dict[TaskKind, tuple[str, ...]] = {
    "caption": ("text", "texts"), "question": ("answer", "answers"), "classes": ("class",),
}
VISUALS: tuple[Literal["image", "video"], ...] = ("image", "video")
LISTED = ("texts", "answers")  # keys of a list
FORMS: dict[TaskKind, str] = {
    "caption": "image or video, and text or texts",
    "question": "image or video, or neither, with question and answer or answers",
    "classes": "image or video, and class, and perhaps question",
}


def line_rows(path: Path, kind: TaskKind) -> Iterator[Row]:
    """Read the lines of a file that are not blank. An item without an ``id`` is named by the file and the line.

    Raises `DataError` for a file that cannot be read, `DamagedSample` for a line that is no JSON object or has other
    keys than those above: one may be misspelt.
    """
    lines = JsonLines.open(path, lambda line: kind)
    for index in range(len(lines)):
        yield _row(lines.row(index), lines.name(index), f"{printable(path.name)}:{lines.numbers[index]}", kind)


def _row(row: dict[str, Any], where: str, name: str, kind: TaskKind) -> Row:
    visuals: list[Literal["image", "video"]] = [key for key in VISUALS if key in row]
    key = next((key for key in ANSWERS[kind] if key in row), "")
    asks = kind == "question" or (kind == "classes" and "question" in row)
    wanted = {"question", key} if asks else {key}
    if set(row) - {*VISUALS, "id", "group"} != wanted or len(visuals) > 1 or not (visuals or kind == "question"):
        raise DamagedSample(where, f"has the keys {shown(', '.join(row))}: a line of the kind {kind} has "
                                   f"{FORMS[kind]}; id and group are optional")
    visual = visuals[0] if visuals else None
    return Row(where, row.get("id", name), key, row[key] if key in LISTED else [row[key]], row.get("question"), visual,
               row.get(visual) if visual else None, row.get("group"))
