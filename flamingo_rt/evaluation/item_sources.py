"""From what a task names as items to a pool of them: the form is found out from what is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.evaluation.coco_captions import coco_rows
from flamingo_rt.evaluation.item_lines import line_rows
from flamingo_rt.evaluation.item_pool import ItemPool, Row, make_pool
from flamingo_rt.evaluation.task import TaskKind
from flamingo_rt.evaluation.vqa_files import vqa_rows
from flamingo_rt.printable import printable
from flamingo_rt.training.data.folder_source import ImageFolder, class_name, holds_class_folders
from flamingo_rt.training.data.row_fields import SHOWN_CHARACTERS

LISTED = "captions.jsonl"  # the file that says what its folder holds


@dataclass(frozen=True)
class ItemSource:
    """The files or the folder of a pool of items, and the folder of their pictures; None for the place of ``paths``.

    ``where`` is what names them in messages: the task's file and the key in it.
    """

    where: str
    paths: tuple[Path, ...]
    images: Path | None


def read_items(source: ItemSource, kind: TaskKind) -> ItemPool:
    """Read the items of a task of a kind.

    - A ``.jsonl`` file, or a folder with a ``captions.jsonl`` (`item_lines.py`), of every kind.
    - A ``.json`` file: COCO's captions (`coco_captions.py`).
    - Two ``.json`` files: VQAv2's questions and answers (`vqa_files.py`).
    - A folder with a folder of pictures for each class, whose name is the class.

    Raises `UsageError` for a form that has no items of the kind, or that needs ``images``, and `DataError` for what
    cannot be read.
    """
    try:
        return _read(source, kind)
    except OSError as error:  # a folder that may not be looked into, a name that is too long
        raise DataError(f"{source.where}: cannot read {str(error.filename)[:SHOWN_CHARACTERS]}: {error.strerror}; give "
                        "another path, or this user read access to it") from error


def _read(source: ItemSource, kind: TaskKind) -> ItemPool:
    path = source.paths[0]
    if len(source.paths) == 2:
        _only("question", "two files hold questions and answers", source, kind)
        return _pool(vqa_rows(path, source.paths[1]), kind, _pictures(source), source)
    if path.is_dir() and not (path / LISTED).exists():
        return _read_classes(path, source, kind)
    if path.is_dir():
        return _pool(line_rows(path / LISTED, kind), kind, source.images or path, source)
    if path.suffix.lower() == ".jsonl":
        return _pool(line_rows(path, kind), kind, source.images or path.parent, source)
    if path.suffix.lower() == ".json":
        _only("caption", "one .json file holds COCO's captions (of VQAv2, give questions and answers)", source, kind)
        return _pool(coco_rows(path), kind, _pictures(source), source)
    known = f"give a .jsonl file, COCO's or VQAv2's .json files, or a folder with a {LISTED} or of classes"
    raise DataError(f"{source.where}: {path} {'is none of these' if path.exists() else 'does not exist'}: {known}")


def _read_classes(folder: Path, source: ItemSource, kind: TaskKind) -> ItemPool:
    if not holds_class_folders(folder):
        raise DataError(f"{source.where}: {folder} holds neither a {LISTED} nor folders of pictures: give another one")
    _only("classes", "a folder of folders holds classes", source, kind)
    if source.images is not None:
        raise UsageError(f"{source.where}: {folder} holds its own pictures: leave images out")
    files = ImageFolder.open(folder, "{}").names
    rows = (Row(printable(str(folder / file)), printable(file), "the name of the class",
                [class_name(file.split("/", 1)[0])], file=file) for file in files)
    return _pool(rows, kind, folder, source)


def _pool(rows: Iterator[Row], kind: TaskKind, root: Path, source: ItemSource) -> ItemPool:
    if not root.is_dir():
        raise DataError(f"{source.where}: the folder of pictures, {root}, does not exist: give another one as images")
    return make_pool(rows, kind, root.resolve(), f"{source.where}: {source.paths[0]}")


def _pictures(source: ItemSource) -> Path:
    if source.images is None:
        raise UsageError(f"{source.where}: {source.paths[0]} does not say where its pictures are: give their folder as "
                         "images")
    return source.images


def _only(held: TaskKind, form: str, source: ItemSource, kind: TaskKind) -> None:
    if kind != held:
        raise UsageError(f"{source.where}: {form}, which is a task of the kind {held}, not {kind}")
