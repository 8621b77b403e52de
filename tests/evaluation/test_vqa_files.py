"""Questions and answers in VQAv2's form, in two files with the keys of the official ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_tasks import touch, vqa, write_json, write_task

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.evaluation.task import Item, Task
from flamingo_rt.evaluation.task_file import read_task

FILES = ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json")
PICTURE = "COCO_val2014_000000262148.jpg"
TEN = ["down", "down", "at table", "skateboard", "down", "table", "down", "", "down", "down"]
ENTRIES = [(262148000, 262148, "Where is he looking?", TEN), (262148001, 262148, "What are the people doing?", TEN)]
ASKED, ANSWERED = vqa(ENTRIES)


def read(folder: Path, asked: Any = ASKED, answered: Any = ANSWERED, **keys: Any) -> Task:
    """The task of two files, whose pictures are in ``val2014``."""
    touch(folder / "val2014", [PICTURE])
    write_json(folder / FILES[0], asked)
    write_json(folder / FILES[1], answered)
    return read_task(write_task(folder, **{"kind": "question", "items": FILES, "images": "val2014"} | keys))


def test_a_question_has_its_ten_answers_and_the_picture_of_its_number(tmp_path: Path) -> None:
    task = read(tmp_path)
    file = tmp_path / "val2014" / PICTURE
    assert task.items == tuple(Item(str(number), file, text, tuple(TEN)) for number, _, text, _ in ENTRIES)
    assert (task.metric, task.items[0].answer) == ("vqa", "down")


def test_a_part_of_the_questions_may_be_asked(tmp_path: Path) -> None:
    asked = {**ASKED, "questions": ASKED["questions"][1:]}
    assert [item.name for item in read(tmp_path, asked).items] == ["262148001"]


def test_shots_come_from_pictures_of_another_folder(tmp_path: Path) -> None:
    asked, answered = vqa([(9000, 9, "Is it?", ["yes"] * 10)], "train2014")
    touch(tmp_path / "train2014", ["COCO_train2014_000000000009.jpg"])
    support = [write_json(tmp_path / name, data).name for name, data in (("q.json", asked), ("a.json", answered))]
    task = read(tmp_path, support=support, support_images="train2014")
    assert task.support[0].file == tmp_path / "train2014" / "COCO_train2014_000000000009.jpg"
    assert len(task.items) == 2


def test_a_picture_that_is_not_there_is_listed(tmp_path: Path) -> None:
    task = read(tmp_path, *vqa([*ENTRIES, (1, 1, "Is it?", TEN)]))
    assert len(task.items) == 2
    assert task.missing == (f"{tmp_path / FILES[0]}, questions 3: image 'COCO_val2014_000000000001.jpg' does not exist "
                            f"in {tmp_path / 'val2014'}",)


QUESTION, ANSWER = ASKED["questions"][0], ANSWERED["annotations"][0]


@pytest.mark.parametrize(("change", "message"), [
    ({"data_subtype": None}, ": data_subtype is None; it must be a text such as val2014"),
    ({"data_subtype": "../val"}, ", questions 1: image 'COCO_../val_000000262148.jpg' does not exist"),
    ({"questions": None}, " has no list 'questions', but "),
    ({"questions": []}, None),
    ({"questions": [[]]}, ", questions 1: is [], not a JSON object"),
    ({"questions": [{**QUESTION, "question_id": None}]}, ", questions 1: question_id is None, neither"),
    ({"questions": [{**QUESTION, "image_id": -1}]}, ", questions 1: image_id is -1, not a whole number of at most 12"),
    ({"questions": [{**QUESTION, "image_id": 10**12}]}, ", questions 1: image_id is 1000000000000, not"),
    ({"questions": [{**QUESTION, "image_id": "../a"}]}, ", questions 1: image_id is '../a', not"),
    ({"questions": [{**QUESTION, "question": 3}]}, ", questions 1: question is 3, not a text"),
    ({"questions": [{**QUESTION, "question_id": 5}]}, ", questions 1: "),
    ({"questions": [QUESTION, QUESTION]}, ", questions 2: the id '262148000' was already given, at "),
], ids=lambda value: None if isinstance(value, str) else ascii(value)[-50:])
def test_questions_of_another_form_are_named(tmp_path: Path, change: dict[str, Any], message: str | None) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, {**ASKED, **change})
    assert str(tmp_path / FILES[0]) + (message or " holds no item") in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(("annotations", "message"), [
    (None, " has no list 'annotations', but "),
    ([], " has no answer to the question 262148000"),
    ([{**ANSWER, "answers": []}], " has no answer to the question 262148000"),
    ([{**ANSWER, "answers": ["down"]}], ", annotations 1: answers is ['down'], not a list of objects"),
    ([{**ANSWER, "answers": "down"}], ", annotations 1: answers is 'down', not a list of objects"),
    ([ANSWER, ANSWER], ", annotations 2: the question 262148000 was already answered"),
    ([{"question_id": 1.5}], ", annotations 1: question_id is 1.5, neither"),
], ids=lambda value: None if isinstance(value, str) else ascii(value)[:30])
def test_answers_of_another_form_are_named(tmp_path: Path, annotations: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, answered={**ANSWERED, "annotations": annotations})
    assert str(tmp_path / FILES[1]) + message in str(caught.value)


def test_an_answer_that_is_no_text_is_named(tmp_path: Path) -> None:
    broken = {**ANSWERED, "annotations": [{**ANSWER, "answers": [{"answer": None}]}, ANSWERED["annotations"][1]]}
    with pytest.raises(DataError, match=r"questions.json, questions 1: answers is None, not a text"):
        read(tmp_path, answered=broken)


def test_the_files_the_other_way_round_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"annotations.json has no list 'questions'"):
        read(tmp_path, items=FILES[::-1])


def test_the_kind_and_the_folder_of_pictures_must_fit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"task.toml: items: two files hold questions and answers, which is a task of"):
        read(tmp_path, kind="caption")
    with pytest.raises(UsageError, match=r"questions.json does not say where its pictures are"):
        read(tmp_path, images=None)
