"""Tasks of an n-shot evaluation from TOML files.

    kind = "question"        # caption, question or classes
    items = "heldout.jsonl"  # what is asked about: see item_sources.py
    support = "train.jsonl"  # where shots are drawn from
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.evaluation.item_pool import ItemPool
from flamingo_rt.evaluation.item_sources import ItemSource, read_items
from flamingo_rt.evaluation.task import Item, Metric, Task, TaskKind
from flamingo_rt.printable import printable
from flamingo_rt.runtime.generation_options import GenerationOptions
from flamingo_rt.toml_files import nearest, read_toml
from flamingo_rt.training.data.row_fields import shown

KEYS = ("name", "kind", "metric", "items", "support", "images", "support_images", "before", "classes", "beams",
        "max_new_tokens")
KINDS: tuple[TaskKind, ...] = get_args(TaskKind)
METRICS: dict[TaskKind, tuple[Metric, ...]] = {
    "caption": ("cider", "exact"), "question": ("exact", "vqa"), "classes": ("accuracy",),
}
VQA_ANSWERS = 10  # of each question: what the metric is defined for (arXiv 1505.00468)
CIDER_BEAMS = 3  # as in OpenFlamingo's evaluation (arXiv 2308.01390)
MAX_NEW_TOKENS = 20


def read_task(file: Path) -> Task:
    """Read a task and its items.

    Paths in the file are relative to it. Names of pictures within items are relative to ``images``, or to the file of
    the items, and stay in there. ``support`` is the same tuple as ``items`` where both are read from the same place.

    Raises `UsageError` for a key that is unknown or missing, a value that a key cannot have, and keys that do not fit
    each other; `DataError` for files that cannot be read, and items that cannot be used.
    """
    return _TaskFile(file).task()


class _TaskFile:
    """The keys of one file, each checked when it is taken."""

    def __init__(self, file: Path) -> None:
        self._file, self._table = file, read_toml(file)
        for key in self._table:
            if key not in KEYS:
                raise UsageError(f"{file}: there is no key {shown(key)}; {nearest(key, KEYS)}")

    def task(self) -> Task:
        """The task of the file; see `read_task`."""
        kind = self._one_of("kind", KINDS)
        if kind is None:
            raise self._error(f"kind is missing: give {' or '.join(KINDS)}")
        for key in ("beams", "max_new_tokens") if kind == "classes" else ("classes",):
            if key in self._table:
                raise self._error(f"{key} has no effect on a task of the kind {kind}: leave it out")
        name, before, metric = self._name(), self._before(kind), self._one_of("metric", METRICS[kind], kind)
        options = self._generation(CIDER_BEAMS if kind == "caption" and metric != "exact" else 1)
        classes, group_classes = self._texts("classes"), {}
        items, support = self._pools(kind)
        self._check_groups(items.items, support.items)
        if kind == "classes" and not classes:
            group_classes = {group: self._classes(*within) for group, within in
                             _by_group(items.items, support.items).items()}
            classes = tuple(sorted({name for names in group_classes.values() for name in names}))
        elif kind == "classes":
            self._check_classes(classes, "classes", items.items, support.items)
        return Task(
            name, kind, self._metric(metric, kind, items.items), items.items, support.items, classes, before,
            options.beams, options.max_new_tokens, items.missing + (() if support is items else support.missing),
            group_classes,
        )

    def _error(self, message: str) -> UsageError:
        return UsageError(f"{self._file}: {message}")

    def _text(self, key: str, wish: str = "a text") -> str | None:
        value = self._table.get(key)
        if value is not None and not isinstance(value, str):
            raise self._error(f"{key} is {shown(value)}; it must be {wish}")
        return value

    def _texts(self, key: str, wish: str = "a list of texts, each of them once") -> tuple[str, ...]:
        if key not in self._table:
            return ()
        value = self._table[key]
        texts = [text.strip() for text in value if isinstance(text, str)] if isinstance(value, list) else []
        if not texts or len(texts) != len(value) or not all(texts) or len(set(texts)) != len(texts):
            raise self._error(f"{key} is {shown(value)}; it must be {wish}")
        return tuple(texts)

    def _one_of(self, key: str, choices: Sequence[Any], kind: str = "") -> Any:
        value = self._table.get(key)
        if value is not None and value not in choices:
            raise self._error(f"{key} is {shown(value)}; it must be {' or '.join(choices)}"
                              f"{f' for a task of the kind {kind}' if kind else ''}")
        return value

    def _name(self) -> str:
        name = self._text("name")
        if name is not None and not name.strip():
            raise self._error("name is empty: give a text, or leave it out for the file's name")
        return printable(name.strip() if name is not None else self._file.stem)

    def _before(self, kind: TaskKind) -> str | None:
        before = self._text("before")
        places, wanted = (before or "").count("{}"), int(kind == "question")
        if before is not None and places != wanted:
            raise self._error(f"before is {shown(before)}; it must have {'one {}' if wanted else 'no {}'}"
                              f"{', where the question goes' if wanted else f': the kind {kind} has no question'}")
        return before

    def _generation(self, beams: int) -> GenerationOptions:
        try:
            return GenerationOptions(beams=self._number("beams", beams),
                                     max_new_tokens=self._number("max_new_tokens", MAX_NEW_TOKENS))
        except UsageError as error:  # a value out of range
            raise self._error(str(error)) from error

    def _number(self, key: str, default: int) -> int:
        value = self._table.get(key, default)
        if type(value) is not int:
            raise UsageError(f"{key} is {shown(value)}; it must be a whole number")
        return value

    def _pools(self, kind: TaskKind) -> tuple[ItemPool, ItemPool]:
        sources = [self._source("items", ("images",)), self._source("support", ("support_images", "images"))]
        items = read_items(sources[0], kind)
        same = (sources[0].paths, sources[0].images) == (sources[1].paths, sources[1].images)
        return items, items if same else read_items(sources[1], kind)

    def _source(self, key: str, images_keys: tuple[str, ...]) -> ItemSource:
        wish = "a path, or a list of two: questions and answers"
        if key not in self._table:
            raise self._error(f"{key} is missing: give {wish}")
        listed = isinstance(self._table[key], list)
        paths = self._texts(key, wish) if listed else (self._text(key, wish) or "",)
        if not all(paths) or len(paths) != 1 + listed:
            raise self._error(f"{key} is {shown(self._table[key])}; it must be {wish}")
        images = next((found for found in map(self._text, images_keys) if found is not None), None)
        place = self._file.parent
        return ItemSource(f"{self._file}: {key}", tuple(place / path for path in paths),
                          None if images is None else place / images)

    def _check_groups(self, items: Sequence[Item], support: Sequence[Item]) -> None:
        drawn_from = {item.group for item in support}
        for item in items:
            if item.group not in drawn_from:
                of = f"the group {shown(item.group)}" if item.group else "no group"
                raise DataError(f"{self._file}: the item {shown(item.name)} is of {of}, and so is no item of the "
                                "support: give its group some, or leave the item out")

    def _classes(self, items: Sequence[Item], support: Sequence[Item]) -> tuple[str, ...]:
        """The classes of a support."""
        classes = tuple(sorted({item.answer for item in support}))
        self._check_classes(classes, "support", items, support)
        return classes

    def _check_classes(
        self, classes: Sequence[str], origin: str, items: Sequence[Item], support: Sequence[Item]
    ) -> None:
        group = items[0].group if origin == "support" else ""
        where = f"the support of the group {shown(group)}" if group else origin
        if len(classes) < 2:
            raise DataError(f"{self._file}: {where} has the one class {shown(classes[0])}: there is nothing to choose")
        known = set(classes)
        for item in (*items, *support):
            if item.answer not in known:
                raise DataError(f"{self._file}: {where} does not have the class {shown(item.answer)} of the item "
                                f"{shown(item.name)}: name all classes under classes")

    def _metric(self, stated: Metric | None, kind: TaskKind, items: Sequence[Item]) -> Metric:
        fewer = next((item for item in items if len(item.answers) != VQA_ANSWERS), None)
        if stated == "vqa" and fewer is not None:
            raise DataError(f"{self._file}: metric is vqa, which counts {VQA_ANSWERS} answers to each question; the "
                            f"item {shown(fewer.name)} has {len(fewer.answers)}: take exact")
        return stated or ("vqa" if kind == "question" and fewer is None else METRICS[kind][0])


def _by_group(items: Sequence[Item], support: Sequence[Item]) -> dict[str, tuple[list[Item], list[Item]]]:
    """The items and the support of each group that has items."""
    found: dict[str, tuple[list[Item], list[Item]]] = {}
    for item in items:
        found.setdefault(item.group, ([], []))[0].append(item)
    for item in support:
        if item.group in found:
            found[item.group][1].append(item)
    return found
