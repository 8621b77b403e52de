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

CLASSES = 4


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
    settings = [Setting(CLASSES, 0), Setting(4 * CLASSES, 0), *(
        Setting(4 * CLASSES, 0, control) for control in ("blank", "shuffled", "text"))]
    answers = run.answers(settings, tmp_path / "answers.jsonl", {}, False)
    found = {(score.shots, score.control): score.mean.mean for score in task_scores(words, answers)}
    assert found[CLASSES, "none"] >= 0.9  # of 50 queries; 99.2% measured of 500
    assert found[4 * CLASSES, "none"] >= 0.95
    # Chance is a quarter, and the 25 queries of a group share their shots.
    assert all(found[4 * CLASSES, control] < 0.5 for control in ("blank", "shuffled", "text"))
