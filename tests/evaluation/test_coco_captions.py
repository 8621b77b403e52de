"""Captions in COCO's form: an item for each picture, with all of its captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_tasks import coco, touch, write_json, write_task

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.evaluation.task import Item, Task
from flamingo_rt.evaluation.task_file import read_task

FILES = {391895: "COCO_val2014_000000391895.jpg", 522418: "COCO_val2014_000000522418.jpg"}
CAPTIONS = [(522418, "A woman cuts a cake.\n"), (391895, "A man on a motorcycle."), (391895, "A man in a red shirt .")]


def read(folder: Path, data: Any) -> Task:
    """The task of a file, whose pictures are in ``val2014``."""
    touch(folder / "val2014", FILES.values())
    write_json(folder / "captions_val2014.json", data)
    return read_task(write_task(folder, kind="caption", items="captions_val2014.json", images="val2014"))


def test_a_picture_has_all_of_its_captions(tmp_path: Path) -> None:
    task = read(tmp_path, coco(FILES.items(), [*CAPTIONS, (42, "Of a picture that is not listed.")]))
    pictures = [tmp_path / "val2014" / name for name in FILES.values()]
    assert task.items == (
        Item("391895", pictures[0], None, ("A man on a motorcycle.", "A man in a red shirt .")),
        Item("522418", pictures[1], None, ("A woman cuts a cake.",)),
    )
    assert (task.metric, task.beams, task.missing) == ("cider", 3, ())


def test_pictures_in_a_folder_of_the_name_in_the_file(tmp_path: Path) -> None:
    touch(tmp_path, ["train/a.jpg"])
    write_json(tmp_path / "a.json", coco([(1, "train/a.jpg")], [(1, "a cat")]))
    task = read_task(write_task(tmp_path, kind="caption", items="a.json", images="."))
    assert task.items[0].file == tmp_path / "train" / "a.jpg"


WHOLE = coco(FILES.items(), CAPTIONS)


@pytest.mark.parametrize(("data", "message"), [
    ([WHOLE], " holds [{"),
    ({"questions": []}, " has no list 'images', but 'questions': give the file as it was downloaded"),
    ({**WHOLE, "annotations": {}}, " has no list 'annotations', but "),
    ({**WHOLE, "images": [3]}, ", images 1: is 3, not a JSON object"),
    ({**WHOLE, "annotations": [{}]}, ", annotations 1: image_id is None, neither a text nor a whole number"),
    ({**WHOLE, "annotations": [{"image_id": 391895}]}, ", images 1: caption is None, not a text"),
    ({**WHOLE, "annotations": []}, ", images 1: caption is empty: an item needs what is right about it"),
    ({**WHOLE, "images": [{"id": 391895}]}, ", images 1: image is None, not the name of a file"),
    ({**WHOLE, "images": [{"id": 10**20}]}, ", images 1: id is 100000000000000000000, neither"),
    ({**WHOLE, "images": [*WHOLE["images"], WHOLE["images"][0]]}, ", images 3: the id '391895' was already given, at "),
    ({**WHOLE, "images": [{"id": 391895, "file_name": "../a.jpg"}]}, ", images 1: image '../a.jpg' leads out of "),
], ids=lambda value: None if isinstance(value, str) else ascii(value)[-40:])
def test_a_file_of_another_form_is_named_with_the_entry(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, data)
    assert str(caught.value).startswith(f"{tmp_path / 'captions_val2014.json'}{message}")
    assert len(str(caught.value)) < 500


def test_a_file_without_pictures_holds_no_item(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task.toml: items: .*captions_val2014.json holds no item"):
        read(tmp_path, coco([], []))


def test_damaged_json_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": [],\n"annotations": [}')
    with pytest.raises(DataError, match=r"a.json is not valid JSON: .*line 2 column 17"):
        read_task(write_task(tmp_path, kind="caption", items="a.json", images="."))


def test_the_folder_of_the_pictures_must_be_given_and_exist(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", WHOLE)
    with pytest.raises(UsageError, match=r"task.toml: items: .*a.json does not say where its pictures are: .* images"):
        read_task(write_task(tmp_path, kind="caption", items="a.json"))
    with pytest.raises(DataError, match=r"task.toml: items: the folder of pictures, .*absent, does not exist"):
        read_task(write_task(tmp_path, kind="caption", items="a.json", images="absent"))
