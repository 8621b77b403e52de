"""Captions in COCO's form (arXiv 1504.00325): a JSON file with the pictures, and a list of captions that name them.

    {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "a cat"}]}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flamingo_rt.evaluation.item_pool import Row
from flamingo_rt.evaluation.json_records import read_object, records, reference


def coco_rows(path: Path) -> Iterator[Row]:
    """Read the pictures of a file, each with all of its captions. Captions of other pictures are passed over.

    Raises `DataError` for a file of another form, `DamagedSample` for an entry that cannot be used.
    """
    data = read_object(path)
    pictures = [(where, record, reference(record, "id", where)) for where, record in records(data, "images", path)]
    captions: dict[str, list[Any]] = {name: [] for _, _, name in pictures}
    for where, record in records(data, "annotations", path):
        captions.get(reference(record, "image_id", where), []).append(record.get("caption"))
    for where, record, name in pictures:
        yield Row(where, name, "caption", captions[name], file=record.get("file_name"))
