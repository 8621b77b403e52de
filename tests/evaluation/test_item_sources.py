"""The form of items is found out from what is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_data import write_lines
from made_tasks import QUESTION, pictures, touch, write_json, write_task

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.evaluation.task import Item
from flamingo_rt.evaluation.task_file import read_task


def test_a_folder_of_folders_holds_classes(tmp_path: Path) -> None:
    touch(tmp_path / "animals", ["golden_retriever/1.jpg", "golden_retriever/old/2.JPG", "cat/1.png", "cat/notes.txt"])
    task = read_task(write_task(tmp_path, kind="classes", items="animals"))
    assert task.items == tuple(
        Item(name, tmp_path / "animals" / name, None, (label,)) for name, label in (
            ("cat/1.png", "cat"), ("golden_retriever/1.jpg", "golden retriever"),
            ("golden_retriever/old/2.JPG", "golden retriever"))
    )
    assert (task.classes, task.metric) == (("cat", "golden retriever"), "accuracy")


def test_a_folder_with_captions_is_as_its_file(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set")
    write_lines(folder / "captions.jsonl", [QUESTION])
    for items in ("set", "set/captions.jsonl"):
        task = read_task(write_task(tmp_path, kind="question", items=items))
        assert task.items == (Item("captions.jsonl:1", folder / "0.png", "Is it red?", ("yes",)),)


def test_pictures_may_be_in_another_folder_than_the_lines(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures")
    write_lines(tmp_path / "set" / "captions.jsonl", [QUESTION])
    task = read_task(write_task(tmp_path, kind="question", items="set", images="pictures"))
    assert task.items[0].file == tmp_path / "pictures" / "0.png"


def test_a_link_that_leads_out_of_a_folder_of_classes_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, ["outside.png", "animals/cat/1.png", "animals/dog/1.png", "elsewhere/1.png"])
    (tmp_path / "animals" / "cat" / "2.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(DataError, match=r"cat/2.png: image 'cat/2.png' is a link that leads out"):
        read_task(write_task(tmp_path, kind="classes", items="animals"))
    (tmp_path / "animals" / "cat" / "2.png").unlink()
    (tmp_path / "animals" / "owl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="owl is a link to a folder, which is not followed"):
        read_task(write_task(tmp_path, kind="classes", items="animals"))


@pytest.mark.parametrize(("kind", "items", "message"), [
    ("caption", "animals", "a folder of folders holds classes, which is a task of the kind classes, not caption"),
    ("question", "captions.json", r"one .json file holds COCO's captions \(of VQAv2, give questions and answers\)"),
], ids=["folder", "coco"])
def test_a_form_of_another_kind_is_refused(tmp_path: Path, kind: str, items: str, message: str) -> None:
    touch(tmp_path, ["animals/cat/1.png"])
    write_json(tmp_path / "captions.json", {})
    with pytest.raises(UsageError, match=rf"task.toml: items: {message}"):
        read_task(write_task(tmp_path, kind=kind, items=items))


def test_a_folder_of_classes_takes_no_other_folder_of_pictures(tmp_path: Path) -> None:
    touch(tmp_path, ["animals/cat/1.png", "animals/dog/1.png"])
    with pytest.raises(UsageError, match="animals holds its own pictures: leave images out"):
        read_task(write_task(tmp_path, kind="classes", items="animals", images="."))


@pytest.mark.parametrize(("items", "message"), [
    ("absent.jsonl", r"absent.jsonl' does not exist; check the path"),
    ("absent.json", r"cannot read .*absent.json: it does not exist"),
    ("absent", r"task.toml: items: .*absent does not exist: give a .jsonl file, COCO's or VQAv2's .json files, or"),
    ("table.csv", r"task.toml: items: .*table.csv is none of these: give"),
    ("empty", r"task.toml: items: .*empty holds neither a captions.jsonl nor folders of pictures: give another one"),
    ("a" * 5000, r"task.toml: items: cannot read .{1,100}: File name too long; give another path"),
    ("nul\x00", r"does not exist: give"),
], ids=["jsonl", "json", "nothing", "csv", "empty", "long", "nul"])
def test_items_that_are_not_there_are_named(tmp_path: Path, items: str, message: str) -> None:
    touch(tmp_path, ["table.csv"])
    (tmp_path / "empty").mkdir()
    write_json(tmp_path / "x.json", {})
    with pytest.raises(DataError, match=message):
        read_task(write_task(tmp_path, kind="caption", items=items, images="."))
    write_lines(pictures(tmp_path) / "sound.jsonl", [{"image": "0.png", "text": "a"}])
    with pytest.raises(DataError, match=message.replace("items", "support")):
        read_task(write_task(tmp_path, kind="caption", items="sound.jsonl", support=items, images="."))
