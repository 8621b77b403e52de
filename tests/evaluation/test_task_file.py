"""Task files: defaults, keys that fit each other, and errors that name the file and the key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_data import write_lines
from made_tasks import QUESTION, pictures, write_task

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.evaluation.task import Item
from flamingo_rt.evaluation.task_file import read_task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures, with a file of items of each kind."""
    pictures(tmp_path)
    write_lines(tmp_path / "captions.jsonl", [{"image": f"{i}.png", "text": f"number {i}"} for i in range(10)])
    write_lines(tmp_path / "questions.jsonl", [QUESTION] * 2)
    write_lines(tmp_path / "ten.jsonl", [
        {"image": "0.png", "question": "Is it red?", "answers": ["yes"] * 6 + ["no"] * 4}] * 2)
    write_lines(tmp_path / "classes.jsonl", [{"image": f"{i}.png", "class": ("red", "blue")[i % 2]} for i in range(4)])
    return tmp_path


def test_a_task_with_every_key(folder: Path) -> None:
    write_lines(folder / "train.jsonl", [QUESTION])
    task = read_task(write_task(
        folder, name="my-vqa", kind="question", metric="vqa", items="ten.jsonl", support="train.jsonl", images=".",
        support_images=".", before="Question: {} Short answer:", after="\n", beams=2, max_new_tokens=5,
        length_penalty=1,
    ))
    assert (task.name, task.kind, task.metric, task.beams, task.max_new_tokens) == ("my-vqa", "question", "vqa", 2, 5)
    assert (task.before, task.classes, task.missing) == ("Question: {} Short answer:", (), ())
    assert (task.after, task.length_penalty, task.per_token) == ("\n", 1.0, False)
    assert task.items[0] == Item("ten.jsonl:1", folder / "0.png", "Is it red?", ("yes",) * 6 + ("no",) * 4)
    assert task.items[0].answer == "yes"
    assert task.support == (Item("train.jsonl:1", folder / "0.png", "Is it red?", ("yes",)),)


@pytest.mark.parametrize(("keys", "metric", "beams"), [
    ({"kind": "caption", "items": "captions.jsonl"}, "cider", 3),
    ({"kind": "caption", "items": "captions.jsonl", "metric": "exact"}, "exact", 1),
    ({"kind": "question", "items": "questions.jsonl"}, "exact", 1),
    ({"kind": "question", "items": "ten.jsonl"}, "vqa", 1),
    ({"kind": "question", "items": "ten.jsonl", "metric": "exact"}, "exact", 1),
    ({"kind": "classes", "items": "classes.jsonl"}, "accuracy", 1),
], ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else str(value))
def test_defaults_go_with_the_kind(folder: Path, keys: dict[str, Any], metric: str, beams: int) -> None:
    task = read_task(write_task(folder, **keys))
    assert (task.name, task.metric, task.beams, task.max_new_tokens) == ("task", metric, beams, 20)
    assert (task.before, task.after, task.length_penalty, task.per_token) == (None, "", 0.0, False)
    assert task.support is task.items


MEMES = [{"image": f"{i}.png", "question": f"so {i}", "class": ("yes", "no")[i % 2]} for i in range(4)]


def test_classes_may_have_a_question_each(folder: Path) -> None:
    write_lines(folder / "memes.jsonl", MEMES)
    before = "is an image with: '{}' written on it. Is it hateful? Answer:"
    task = read_task(write_task(folder, kind="classes", items="memes.jsonl", before=before, per_token=True))
    assert [item.question for item in task.items] == ["so 0", "so 1", "so 2", "so 3"]
    assert (task.per_token, task.classes) == (True, ("no", "yes"))


@pytest.mark.parametrize(("lines", "keys", "message"), [
    ([*MEMES[:3], {"image": "3.png", "class": "no"}], {}, "'memes.jsonl:4' has no question, and 'memes.jsonl:1' has"),
    ([{"image": "3.png", "class": "no"}, *MEMES], {}, "'memes.jsonl:2' has a question, and 'memes.jsonl:1' has"),
    (MEMES, {"before": "Hateful?"}, "it must have one {}, where the question goes"),
    (MEMES, {"before": "{} {}"}, "it must have one {}, where the question goes, or none"),
])
def test_questions_about_classes_are_everywhere_or_nowhere(
    folder: Path, lines: list[dict[str, Any]], keys: dict[str, Any], message: str
) -> None:
    write_lines(folder / "memes.jsonl", lines)
    with pytest.raises((DataError, UsageError)) as raised:
        read_task(write_task(folder, kind="classes", items="memes.jsonl", **keys))
    assert message in str(raised.value)


def grouped(folder: Path, groups: dict[str, list[str]], file: str) -> None:
    """Items of each group, one for each class that is listed."""
    rows = [(group, name) for group, classes in groups.items() for name in classes]
    write_lines(folder / file, [{"image": f"{i}.png", "class": name, "group": group, "id": f"{file}-{i}"}
                                for i, (group, name) in enumerate(rows)])


def test_classes_of_a_group_are_those_of_its_own_support(folder: Path) -> None:
    grouped(folder, {"x": ["dax", "wug"], "y": ["dax", "zup", "fep"], "z": ["nobody asks"]}, "support.jsonl")
    grouped(folder, {"y": ["zup"], "x": ["dax", "wug"]}, "items.jsonl")
    task = read_task(write_task(folder, kind="classes", items="items.jsonl", support="support.jsonl"))
    assert task.groups == ("y", "x")
    assert [task.classes_of(item) for item in task.items] == [("dax", "fep", "zup"), ("dax", "wug"), ("dax", "wug")]
    assert task.classes == ("dax", "fep", "wug", "zup")
    assert task.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    assert [item.answer for item in task.support_of("x")] == ["dax", "wug"]


@pytest.mark.parametrize(("support", "items", "message"), [
    ({"x": ["dax", "wug"]}, {"y": ["dax"]}, "the item 'items.jsonl-0' is of the group 'y', and so is no item of the "
                                            "support"),
    ({"x": ["dax", "wug"], "y": ["zup"]}, {"y": ["zup"]}, "the support of the group 'y' has the one class 'zup'"),
    ({"x": ["dax", "wug"]}, {"x": ["zup"]}, "the support of the group 'x' does not have the class 'zup' of the item "
                                            "'items.jsonl-0'"),
])
def test_a_group_that_cannot_be_asked_about_is_named(folder: Path, support, items, message) -> None:
    grouped(folder, support, "support.jsonl")
    grouped(folder, items, "items.jsonl")
    with pytest.raises(DataError, match=message):
        read_task(write_task(folder, kind="classes", items="items.jsonl", support="support.jsonl"))


def test_classes_are_those_of_the_support_in_order_or_those_given(folder: Path) -> None:
    write_lines(folder / "one.jsonl", [{"image": "0.png", "class": "red"}])
    assert read_task(write_task(folder, kind="classes", items="classes.jsonl")).classes == ("blue", "red")
    stated = ["red", "green", "blue"]
    task = read_task(write_task(folder, kind="classes", items="classes.jsonl", support="one.jsonl", classes=stated))
    assert task.classes == ("red", "green", "blue")  # of which the support lacks two
    with pytest.raises(DataError, match=r"task.toml: support has the one class 'red': there is nothing to choose"):
        read_task(write_task(folder, kind="classes", items="classes.jsonl", support="one.jsonl"))
    with pytest.raises(DataError, match=r"classes does not have the class 'blue' of the item 'classes.jsonl:2'"):
        read_task(write_task(folder, kind="classes", items="classes.jsonl", classes=["red", "green"]))


def test_paths_are_relative_to_the_file_and_may_lead_anywhere(folder: Path) -> None:
    (folder / "tasks" / "mine").mkdir(parents=True)
    write_lines(folder / "elsewhere" / "items.jsonl", [QUESTION])
    task = read_task(write_task(
        folder / "tasks" / "mine", kind="question", items="../../elsewhere/items.jsonl", images="../..",
        support=str(folder / "questions.jsonl"), support_images=str(folder),
    ))
    assert task.items[0].file == task.support[0].file == folder / "0.png"


def test_a_file_with_a_byte_order_mark_and_line_ends_of_windows(folder: Path) -> None:
    (folder / "task.toml").write_bytes(
        b'\xef\xbb\xbfkind = "question"\r\nitems = "questions.jsonl"\r\nsupport = "questions.jsonl"\r\n')
    assert len(read_task(folder / "task.toml").items) == 2


@pytest.mark.parametrize(("changes", "message"), [
    ({"metrik": "vqa"}, "there is no key 'metrik'; did you mean metric?"),
    ({"a\x1b[2J": 1}, r"there is no key 'a\x1b[2J'; known: after, "),
    ({"kind": None}, "kind is missing: give caption or question or classes"),
    ({"kind": "captions"}, "kind is 'captions'; it must be caption or question or classes"),
    ({"kind": ["question"]}, "kind is ['question']; it must be"),
    ({"metric": "cider"}, "metric is 'cider'; it must be exact or vqa for a task of the kind question"),
    ({"items": None}, "items is missing: give a path, or a list of two"),
    ({"support": None}, "support is missing"),
    ({"items": 3}, "items is 3; it must be a path, or a list of two: questions and answers"),
    ({"items": ""}, "items is ''; it must be a path"),
    ({"items": ["questions.jsonl"]}, "items is ['questions.jsonl']; it must be a path"),
    ({"items": ["a", "b", "c"]}, "items is ['a', 'b', 'c']; it must be a path"),
    ({"items": ["a.json", 3]}, "items is ['a.json', 3]; it must be"),
    ({"support": []}, "support is []; it must be"),
    ({"images": 3}, "images is 3; it must be a text"),
    ({"support_images": []}, "support_images is []; it must be a text"),
    ({"name": " "}, "name is empty"),
    ({"name": True}, "name is True; it must be a text"),
    ({"before": "Question: Answer:"}, "before is 'Question: Answer:'; it must have one {}, where the question goes"),
    ({"before": "{} {}"}, "before is '{} {}'; it must have one {}"),
    ({"classes": ["a", "b"]}, "classes has no effect on a task of the kind question: leave it out"),
    ({"beams": 0}, "beams is 0; it must be from 1 (no search) to 64"),
    ({"beams": True}, "beams is True; it must be a whole number"),
    ({"beams": 10**30}, f"beams is {10**30}; it must be from 1"),
    ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5; it must be a whole number"),
    ({"max_new_tokens": -1}, "max_new_tokens is -1; it must be from 1"),
    ({"length_penalty": "1"}, "length_penalty is '1'; it must be a number"),
    ({"length_penalty": 10**400}, "length_penalty is 1"),
    ({"length_penalty": -11.0}, "length_penalty is -11.0; it must be from -10 to 10"),
    ({"after": 1}, "after is 1; it must be a text"),
    ({"per_token": True}, "per_token has no effect on a task of the kind question: leave it out"),
], ids=lambda value: None if isinstance(value, str) else ascii(value)[:40])
def test_a_key_that_does_not_fit_is_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    whole = {"kind": "question", "items": "questions.jsonl", "support": "questions.jsonl"}
    file = write_task(folder, **(whole | changes))
    with pytest.raises(UsageError) as caught:
        read_task(file)
    assert str(caught.value).startswith(f"{file}: {message}")


@pytest.mark.parametrize(("keys", "message"), [
    ({"kind": "caption", "items": "captions.jsonl", "before": "A {}:"}, "it must have no {}: the kind caption has no"),
    ({"kind": "classes", "items": "classes.jsonl", "before": "{}"}, "it must have no {}: the items have no question"),
    ({"kind": "classes", "items": "classes.jsonl", "beams": 3}, "beams has no effect on a task of the kind classes"),
    ({"kind": "classes", "items": "classes.jsonl", "max_new_tokens": 3}, "max_new_tokens has no effect"),
    ({"kind": "classes", "items": "classes.jsonl", "metric": "exact"}, "it must be accuracy for a task of the kind"),
    ({"kind": "caption", "items": "captions.jsonl", "metric": "vqa"}, "it must be cider or exact for a task"),
    ({"kind": "classes", "items": "classes.jsonl", "per_token": 1}, "per_token is 1; it must be true or false"),
    ({"kind": "classes", "items": "classes.jsonl", "length_penalty": 1}, "length_penalty has no effect"),
    ({"kind": "classes", "items": "classes.jsonl", "classes": []}, "classes is []; it must be a list of texts"),
    ({"kind": "classes", "items": "classes.jsonl", "classes": ["a", "a "]}, "each of them once"),
    ({"kind": "classes", "items": "classes.jsonl", "classes": ["a", ""]}, "classes is ['a', '']"),
    ({"kind": "classes", "items": "classes.jsonl", "classes": "a"}, "classes is 'a'; it must be a list of texts"),
], ids=lambda value: None if isinstance(value, str) else ascii(value)[:60])
def test_keys_that_do_not_fit_the_kind_are_refused(folder: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_task(write_task(folder, **keys))
    assert message in str(caught.value)


def test_the_metric_of_vqa_needs_ten_answers(folder: Path) -> None:
    with pytest.raises(DataError, match=r"task.toml: metric is vqa, .* item 'questions.jsonl:1' has 1: take exact"):
        read_task(write_task(folder, kind="question", items="questions.jsonl", metric="vqa"))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*absent.toml"):
        read_task(tmp_path / "absent.toml")
    with pytest.raises(UsageError, match=r"is a folder: give a \.toml file"):
        read_task(tmp_path)
    (tmp_path / "task.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(DataError, match=r"task.toml"):
        read_task(tmp_path / "task.toml")


def test_an_empty_answer_is_no_shot() -> None:
    assert Item("a", None, "Is it?", ("", "", "no", "yes", "yes")).answer == "yes"
    assert Item("a", None, "Is it?", ("no", "yes")).answer == "no"


def test_reading_tasks_needs_none_of_the_extras() -> None:
    code = "import sys, flamingo_rt.evaluation.task_file as _; print([name for name in sys.modules if name in " \
           "('torch', 'cv2', 'onnxruntime', 'onnx', 'sklearn', 'safetensors', 'tokenizers', 'av')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
