"""A plan chooses shots as it says, and names everything that answers depend on."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.evaluation.task import Task
from flamingo_rt.evaluation.task_digest import task_digest
from flamingo_rt.evaluation.task_plan import TaskPlan, model_identity
from flamingo_rt.runtime.model import Model


@pytest.mark.parametrize(("options", "said"), [
    ({"index": Path("x.npz")}, "select that, or leave index out"),
    ({"select": "rices", "redraw": True}, "leave redraw out"),
    ({"select": "nearest"}, "select is 'nearest'; known: random, balanced, rices"),
    ({"shots": [1, -1]}, r"shots are \[1, -1\]"),
    ({"seeds": 0}, "seeds 0"),
    ({"orders": 0}, "orders 0"),
])
def test_options_that_mean_nothing_are_refused(options, said) -> None:
    with pytest.raises(UsageError, match=said):
        TaskPlan(**{"shots": [1], **options})


def test_a_number_of_shots_that_is_given_twice_is_asked_for_once() -> None:
    assert TaskPlan([2, 1, 2]).settings == TaskPlan([2, 1]).settings


def test_zero_shots_need_two_of_the_support_unless_they_are_none(model: Model, items) -> None:
    task = Task("two", "caption", "exact", items[:1], items[:2])
    with pytest.raises(DataError, match=r"0 shots stand as 2 .* leave them out \(--plain-zero\)"):
        TaskPlan([0, 1]).run_of(model, task)
    TaskPlan([0, 1], plain_zero=True).run_of(model, task)
    with pytest.raises(DataError, match="2 shots are asked for, and the support has 1 items beside the query p0"):
        TaskPlan([0, 2], plain_zero=True).run_of(model, task)


def test_two_texts_that_stand_for_no_shots_are_drawn_at_random_and_not_by_nearness(
    model: Model, captions: Task, folder
) -> None:
    plan = TaskPlan([0, 2], select="rices")
    found = plan.run_of(model, captions).answers(plan.settings, folder / "answers.jsonl", {}, False)
    chosen = {count: {answered.shots for answered in found if answered.setting.shots == count} for count in (0, 2)}
    assert len(chosen[0]) == 1, "one draw for all queries"
    assert len(chosen[2]) > 1, "each query has its own"


@pytest.mark.parametrize("change", [
    {"orders": 2}, {"select": "balanced"}, {"redraw": True}, {"plain_zero": True},
])
def test_everything_that_answers_depend_on_is_told(model: Model, captions: Task, change) -> None:
    plan = TaskPlan([1])
    assert replace(plan, **change).about(model, None, captions) != plan.about(model, None, captions)
    assert replace(plan, shots=[2], seeds=2, controls=("blank",)).about(model, None, captions) == plan.about(
        model, None, captions)


def test_a_checkpoints_identity_is_that_of_its_files(model: Model, tmp_path: Path) -> None:
    assert model.identity is None
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"1234")
    first = model_identity(model, tmp_path)
    assert model_identity(model, tmp_path) == first
    file.write_bytes(b"12345")
    longer = model_identity(model, tmp_path)
    os.utime(file, (1, 1))
    assert len({first, longer, model_identity(model, tmp_path)}) == 3


def test_a_digest_changes_with_a_picture_an_answer_and_the_way_of_asking(captions: Task, tmp_path: Path) -> None:
    copies = []
    for item in captions.items:
        file = tmp_path / item.file.name
        file.write_bytes(item.file.read_bytes())
        copies.append(replace(item, file=file))
    copied = replace(captions, items=tuple(copies))
    assert task_digest(copied) == task_digest(captions), "another place is no other task"
    others = [replace(captions, beams=3), replace(captions, group_classes={"": ("a",)}),
              replace(captions, items=tuple(replace(item, clip=True) for item in captions.items)),
              replace(captions, items=captions.items[1:]),
              replace(captions, support=(*captions.support[1:], replace(captions.support[0], answers=("other",))))]
    copies[0].file.write_bytes(b"another picture")
    digests = {task_digest(task) for task in (captions, copied, *others)}
    assert len(digests) == 7
