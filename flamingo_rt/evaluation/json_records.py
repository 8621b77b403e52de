"""Lists of objects in large JSON files, such as those of COCO and VQAv2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flamingo_rt.errors import DataError
from flamingo_rt.evaluation.item_pool import row_name
from flamingo_rt.json_files import read_json
from flamingo_rt.printable import printable
from flamingo_rt.training.data.row_fields import shown
from flamingo_rt.training.data.samples import DamagedSample

MOST_BYTES = 1_000_000_000  # the annotations of VQAv2's training set have some 400 MB

Record = Mapping[str, Any]


def read_object(path: Path) -> Record:
    """Read a JSON file that holds an object. Raises `DataError` for one that cannot be read, and for other JSON."""
    data = read_json(path, MOST_BYTES)
    if not isinstance(data, dict):
        raise DataError(f"{path} holds {shown(data)}, not a JSON object: give the file as it was downloaded")
    return data


def records(data: Record, key: str, path: Path) -> Iterator[tuple[str, Record]]:
    """The objects of a list under ``key``, each with its place for messages. Raises `DataError` when there is no such
    list, `DamagedSample` for an entry that is no object."""
    listed = data.get(key)
    if not isinstance(listed, list):
        raise DataError(f"{path} has no list {key!r}, but {shown(', '.join(data))}: give the file as it was downloaded")
    for number, record in enumerate(listed, start=1):
        where = f"{printable(str(path))}, {key} {number:,}"
        if not isinstance(record, dict):
            raise DamagedSample(where, f"is {shown(record)}, not a JSON object")
        yield where, record


def reference(record: Record, key: str, where: str) -> str:
    """The name of what a record refers to, or its own; see `row_name`."""
    return row_name(record.get(key), where, key)
