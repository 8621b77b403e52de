"""Items in JSONL files: every form of a line, and errors that name the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_data import write_lines
from made_tasks import QUESTION, pictures, touch, write_task

from flamingo_rt.errors import DataError
from flamingo_rt.evaluation.task import Item, Task
from flamingo_rt.evaluation.task_file import read_task


def read(folder: Path, kind: str, *lines: dict[str, Any] | str) -> Task:
    """The task whose items are ``lines``, in a folder with ten pictures."""
    write_lines(pictures(folder) / "items.jsonl", lines)
    return read_task(write_task(folder, kind=kind, items="items.jsonl"))


def test_captions_of_pictures_and_clips(tmp_path: Path) -> None:
    touch(tmp_path, ["clips/a.mp4"])
    task = read(
        tmp_path, "caption", {"image": "0.png", "text": " a cat\n"},
        {"image": "1.png", "texts": ["a dog", "the dog", "a dog"], "id": "dog"},
        {"video": "clips/a.mp4", "text": "it runs", "id": 7}, "", {"image": "0.png", "text": "the cat again"},
    )
    assert task.items == (
        Item("items.jsonl:1", tmp_path / "0.png", None, ("a cat",)),
        Item("dog", tmp_path / "1.png", None, ("a dog", "the dog", "a dog")),
        Item("7", tmp_path / "clips" / "a.mp4", None, ("it runs",), clip=True),
        Item("items.jsonl:5", tmp_path / "0.png", None, ("the cat again",)),  # blank lines count
    )


def test_questions_with_one_answer_or_several_and_about_no_picture(tmp_path: Path) -> None:
    task = read(
        tmp_path, "question", QUESTION, {"image": "1.png", "question": "Is it?", "answers": ["", "no", " "]},
        {"question": "Two and two?", "answer": "4"},
    )
    assert task.items == (
        Item("items.jsonl:1", tmp_path / "0.png", "Is it red?", ("yes",)),
        Item("items.jsonl:2", tmp_path / "1.png", "Is it?", ("", "no", "")),
        Item("items.jsonl:3", None, "Two and two?", ("4",)),
    )


def test_classes(tmp_path: Path) -> None:
    task = read(tmp_path, "classes", {"image": "0.png", "class": "a cat"}, {"image": "1.png", "class": "a dog"})
    assert [item.answers for item in task.items] == [("a cat",), ("a dog",)]


def test_a_byte_order_mark_line_ends_of_windows_and_no_last_line_end(tmp_path: Path) -> None:
    pictures(tmp_path)
    line = json.dumps(QUESTION).encode()
    (tmp_path / "items.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line)
    task = read_task(write_task(tmp_path, kind="question", items="items.jsonl"))
    assert [item.name for item in task.items] == ["items.jsonl:1", "items.jsonl:3"]
    assert task.items[0].answers == task.items[1].answers == ("yes",)


CAPTION = {"image": "0.png", "text": "a"}


@pytest.mark.parametrize(("kind", "line", "message"), [
    ("caption", '{"image": "0.png", ', "is not valid JSON: "),
    ("caption", "[1]", "is [1], not a JSON object"),
    ("caption", '{"image": "0.png", "image": "1.png", "text": "a"}', "is not valid JSON: the key 'image' appears"),
    ("caption", "[" * 100_000, "is not valid JSON: it is nested too deeply"),
    ("caption", '{"image": "0.png", "text": "a", "id": ' + "9" * 5000 + "}", "is not valid JSON: Exceeds the limit"),
    ("caption", '{"image": "0.png", "text": NaN}', "is not valid JSON: NaN is not a JSON number"),
    ("caption", {**CAPTION, "id": 10**18}, "id is 1000000000000000000, neither a text nor a whole number below"),
    ("caption", {**CAPTION, "id": 1.5}, "id is 1.5, neither a text nor a whole number"),
    ("caption", {**CAPTION, "id": True}, "id is True, neither a text nor a whole number"),
    ("caption", {**CAPTION, "id": ""}, "id is empty"),
    ("caption", {**CAPTION, "id": "a" * 1001}, "id has 1,001 characters"),
    ("caption", {**CAPTION, "caption": "b"}, "has the keys 'image, text, caption': a line of the kind caption has"),
    ("caption", {**CAPTION, "texts": ["b"]}, "has the keys 'image, text, texts'"),
    ("caption", {"text": "a"}, "has the keys 'text': a line of the kind caption has image or video, and text or"),
    ("caption", {**CAPTION, "video": "a.mp4"}, "has the keys 'image, text, video'"),
    ("caption", {"image": "0.png"}, "has the keys 'image'"),
    ("caption", {"image": "0.png", "texts": []}, "texts is empty: an item needs what is right about it"),
    ("caption", {"image": "0.png", "texts": "a"}, "texts is 'a', not a list of texts"),
    ("caption", {"image": "0.png", "texts": ["a", ""]}, "texts is empty"),
    ("caption", {"image": "0.png", "texts": ["a"] * 1001}, "texts has 1,001 texts, more than 1,000"),
    ("caption", {"image": "0.png", "text": " "}, "text is empty"),
    ("caption", {"image": "0.png", "text": 3}, "text is 3, not a text"),
    ("caption", {"image": "0.png", "text": "\ud800"}, "text is not valid Unicode"),
    ("caption", {"image": "0.png", "text": "a" * 100_001}, "text has 100,001 characters"),
    ("caption", {"image": 3, "text": "a"}, "image is 3, not the name of a file"),
    ("question", {"image": "0.png", "question": "Is it?"}, "has the keys 'image, question': a line of the kind"),
    ("question", {"image": "0.png", "answer": "yes"}, "has the keys 'image, answer'"),
    ("question", {"image": "0.png", "question": None, "answer": "yes"}, "question is None, not a text"),
    ("question", {"image": "0.png", "question": "Is it?", "answers": []}, "answers is empty"),
    ("question", {"image": "0.png", "question": "Is it?", "answers": ["", " "]}, "answers is empty"),
    ("question", {"image": "0.png", "question": "Is it?", "answers": ["yes", 3]}, "answers is 3, not a text"),
    ("question", {"image": None, "question": "Is it?", "answer": "yes"}, "image is None, not the name of a file"),
    ("classes", {"image": "0.png", "class": ["a"]}, "class is ['a'], not a text"),
    ("classes", {"image": "0.png", "text": "a"}, "has the keys 'image, text': a line of the kind classes has"),
], ids=lambda value: ascii(value)[:50])
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, kind: str, line: Any, message: str) -> None:
    sound = {"caption": CAPTION, "question": QUESTION, "classes": {"image": "0.png", "class": "a"}}[kind]
    with pytest.raises(DataError) as caught:
        read(tmp_path, kind, sound, line)
    found = str(caught.value)
    assert found.startswith(f"{tmp_path / 'items.jsonl'}:2: {message}")
    assert len(found) < 500


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "items.jsonl").write_bytes(b'{"image": "0.png", "text": "\xff"}\n')
    with pytest.raises(DataError, match=r"items.jsonl:1: is not valid JSON: 'utf-8' codec"):
        read_task(write_task(tmp_path, kind="caption", items="items.jsonl"))


@pytest.mark.parametrize("second", [{**CAPTION, "id": "a"}, {**CAPTION, "id": "items.jsonl:1"}], ids=["id", "line"])
def test_two_items_with_one_name_are_refused(tmp_path: Path, second: dict[str, Any]) -> None:
    first = {**CAPTION, "id": "a"} if second["id"] == "a" else CAPTION
    with pytest.raises(DataError, match=r"items.jsonl:2: the id '.*' was already given, at .*items.jsonl:1: each item"):
        read(tmp_path, "caption", first, second)


@pytest.mark.parametrize(("content", "message"), [(b"", "is empty"), (b"\n \r\n", "holds no item")], ids=["0", "blank"])
def test_a_file_without_a_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "items.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=rf"items.jsonl {message}"):
        read_task(write_task(tmp_path, kind="caption", items="items.jsonl"))


# --- Pictures


def test_missing_pictures_are_listed_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    lines = [{"image": name, "text": "a"} for name in ("0.png", "gone\x1b.png", "1.png", "folder.png")]
    task = read(tmp_path, "caption", *lines)
    assert [item.file for item in task.items] == [tmp_path / "0.png", tmp_path / "1.png"]
    file = tmp_path / "items.jsonl"
    assert task.missing == (
        f"{file}:2: image 'gone\\x1b.png' does not exist in {tmp_path}",
        f"{file}:4: image 'folder.png' in {tmp_path} is no file",
    )


def test_missing_pictures_of_both_pools_are_listed(tmp_path: Path) -> None:
    lines = [{"image": name, "text": "a"} for name in ("0.png", "gone.png")]
    for name in ("items.jsonl", "support.jsonl"):
        write_lines(pictures(tmp_path) / name, lines)
    task = read_task(write_task(tmp_path, kind="caption", items="items.jsonl", support="support.jsonl"))
    assert [text.split(": ")[0] for text in task.missing] == [f"{tmp_path / name}:2" for name in (
        "items.jsonl", "support.jsonl")]


def test_more_than_half_of_the_pictures_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task.toml: items: .*items.jsonl: the pictures of 2 of 3 items are "
                                        r"missing, more than half; the first: .*:2: image 'x.png' .* as images"):
        read(tmp_path, "caption", CAPTION, *({"image": f"{name}.png", "text": "a"} for name in "xy"))


@pytest.mark.parametrize("name", ["../outside.png", "/etc/hostname", "a/../0.png", "linked.png", "linked/outside.png"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    touch(tmp_path, ["outside.png", "other/outside.png", "inside/a/b.png"])
    (inside / "linked.png").symlink_to("../outside.png")
    (inside / "linked").symlink_to("../other")
    with pytest.raises(DataError, match=r"items.jsonl:2: image .*(absolute path|leads out|link that leads out)"):
        read(inside, "caption", CAPTION, {"image": name, "text": "a"})


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "linked.png").symlink_to("0.png")
    assert read(tmp_path, "caption", {"image": "linked.png", "text": "a"}).items[0].file == tmp_path / "0.png"
