"""Pools of items: rows of other people's files, checked, each with its picture or clip found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flamingo_rt.errors import DataError
from flamingo_rt.evaluation.task import Item, TaskKind
from flamingo_rt.printable import printable
from flamingo_rt.training.data.row_fields import checked_text, file_inside, shown, text_value
from flamingo_rt.training.data.samples import DamagedSample, MissingFile

MOST_ANSWERS = 1000  # of an item; VQAv2 has ten, COCO five captions
MOST_NAME = 1000  # characters: a path in a folder of classes is a name too


@dataclass(frozen=True)
class Row:
    """An item as it stands in a file, before any of it is checked.

    ``where`` is its place in messages, ``name`` becomes the item's. ``file`` is the name of its picture or clip, and
    stands under the key ``visual``, which is None where there is none. ``key`` is what the answers are called.
    ``group`` is None where an item has none.
    """

    where: str
    name: Any
    key: str
    answers: Any
    question: Any = None
    visual: Literal["image", "video"] | None = "image"
    file: Any = None
    group: Any = None


@dataclass(frozen=True)
class ItemPool:
    """The items of a file or folder, and the pictures that it names and that are not there, with the reason."""

    items: tuple[Item, ...]
    missing: tuple[str, ...]


def make_pool(rows: Iterable[Row], kind: TaskKind, root: Path, source: str) -> ItemPool:
    """Check the rows of ``source``, and find their pictures and clips in the folder ``root``, which must be resolved.

    Raises `DataError` when there is no row, for a row that cannot be used, for a name that two of them have, and when
    more than half of the pictures are missing.
    """
    items: list[Item] = []
    missing: list[str] = []
    places: dict[str, str] = {}  # of each name
    try:
        for row in rows:
            name = row_name(row.name, row.where)
            if name in places:
                raise DataError(f"{row.where}: the id {shown(name)} was already given, at {places[name]}: each item "
                                "needs its own")
            places[name] = row.where
            try:
                items.append(_item(name, row, kind, root))
            except MissingFile as error:
                missing.append(printable(str(error)))
    except DamagedSample as error:
        raise DataError(f"{error}; correct it, or take it out") from error
    if not places:
        raise DataError(f"{source} holds no item")
    if 2 * len(missing) > len(places):
        raise DataError(f"{source}: the pictures of {len(missing)} of {len(places)} items are missing, more than half; "
                        f"the first: {missing[0]}. Give their folder as images")
    return ItemPool(tuple(items), tuple(missing))


def row_name(value: Any, where: str, key: str = "id") -> str:
    """The name of an item, or of what a row refers to: a text, or a whole number as text. Raises `DamagedSample` for
    another value, and for one of more than `MOST_NAME` characters."""
    if type(value) is int and abs(value) < 10**18:
        return str(value)
    if not isinstance(value, str):
        raise DamagedSample(where, f"{key} is {shown(value)}, neither a text nor a whole number below 10^18")
    return checked_text(value, key, where, MOST_NAME)


def _item(name: str, row: Row, kind: TaskKind, root: Path) -> Item:
    question = text_value(row.question, "question", row.where).strip() if kind == "question" else None
    answers = _answers(row, kind)
    file = None if row.visual is None else file_inside(root, row.file, row.visual, row.where)
    group = "" if row.group is None else row_name(row.group, row.where, "group")
    return Item(name, file, question, answers, row.visual == "video", group)


def _answers(row: Row, kind: TaskKind) -> tuple[str, ...]:
    """The answers without space around them. Of several answers to a question single ones may be empty, as in VQAv2."""
    if not isinstance(row.answers, list):
        raise DamagedSample(row.where, f"{row.key} is {shown(row.answers)}, not a list of texts")
    if not row.answers:
        raise DamagedSample(row.where, f"{row.key} is empty: an item needs what is right about it")
    if len(row.answers) > MOST_ANSWERS:
        raise DamagedSample(row.where, f"{row.key} has {len(row.answers):,} texts, more than {MOST_ANSWERS:,}")
    any_said = any(isinstance(text, str) and text.strip() for text in row.answers)
    return tuple(
        "" if kind == "question" and any_said and isinstance(text, str) and not text.strip()
        else text_value(text, row.key, row.where).strip() for text in row.answers
    )
