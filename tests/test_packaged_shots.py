"""The model in the package: new words mean what the shots' pictures show, and nothing without them."""

from __future__ import annotations

import pytest

from benchmarks.shot_tasks import write_shot_tasks
from flamingo_rt.evaluation.shots import BalancedShots, GroupShots
from flamingo_rt.evaluation.task import Task
from flamingo_rt.evaluation.task_file import read_task
from flamingo_rt.evaluation.task_run import Setting, TaskRun
from flamingo_rt.evaluation.task_scores import task_scores
from flamingo_rt.loading import load
from flamingo_rt.runtime.model import Model

SHOTS = 16  # four of each class


@pytest.fixture(scope="module")
def model() -> Model:
    return load(threads=1)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Two groups of 25 queries, each with four words and pairs that no training episode has."""
    return read_task(write_shot_tasks(tmp_path_factory.mktemp("shots") / "tasks", groups=2, clips=1)["words"])


def test_words_that_it_never_read_are_known_by_their_shots_pictures_alone(model, words, tmp_path) -> None:
    chooser = GroupShots({group: BalancedShots(words.support_of(group), words.group_classes[group])
                          for group in words.groups})
    run = TaskRun(model, words, chooser, orders=1)
    answers = run.answers([Setting(SHOTS, 0), Setting(SHOTS, 0, "blank")], tmp_path / "answers.jsonl", {}, False)
    shown, blank = (score.mean.mean for score in task_scores(words, answers))
    assert shown > 0.7
    assert blank < 0.45  # chance is a quarter
