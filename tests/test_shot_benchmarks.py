"""The tasks of `benchmarks.shots_that_matter`: what they hold out, and what is counted."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks import shot_tasks, shots_that_matter
from benchmarks.shot_tasks import OPPOSITE, write_shot_tasks
from flamingo_rt.evaluation.task import Task
from flamingo_rt.evaluation.task_file import read_task
from flamingo_rt.evaluation.task_run import Answered, Setting
from flamingo_rt.processing.video import read_frames
from flamingo_rt.processing.visuals import Video
from flamingo_rt.training import scenes
from flamingo_rt.training.scenes.digits import HELD_OUT_DIGITS, digit_label
from flamingo_rt.training.scenes.episodes import named_pairs


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    files = write_shot_tasks(tmp_path_factory.mktemp("shots") / "tasks", groups=2, clips=10)
    return {name: read_task(file) for name, file in files.items()}


def frames(file: Path) -> np.ndarray:
    return np.stack([np.asarray(frame) for frame in read_frames(Video(file, 8))])


@pytest.mark.parametrize(("name", "classes", "groups"), [
    ("words", 4, 2), ("textures", 3, 2), ("counts", 3, 2), ("alike", 2, 2), ("characters", 4, 2), ("digits", 3, 2),
    ("ten-digits", 10, 1),
])
def test_each_group_has_words_of_its_own_and_support_of_every_class(tasks, name, classes, groups) -> None:
    task = tasks[name]
    assert task.chance == pytest.approx(1 / classes)
    assert len(task.groups) == groups
    assert len(task.classes) == classes * groups, "no word is in two groups"
    for group in task.groups:
        counts = Counter(item.answer for item in task.support_of(group))
        assert len(counts) == classes
        assert set(counts.values()) == {20 if name == "ten-digits" else 8}
        asked = Counter(item.answer for item in task.items if item.group == group)
        assert max(asked.values()) - min(asked.values()) <= 1


def test_a_word_of_a_task_is_in_no_training_episode(tasks) -> None:
    rng = np.random.default_rng(0)
    known = {shot.answer for _ in range(300) for shot in scenes.sample_episode(rng).shots}
    assert not known & {word for name in ("words", "digits", "ten-digits") for word in tasks[name].classes}


def test_pictures_show_pairs_and_digits_that_no_training_episode_names() -> None:
    named, digits = set(named_pairs("heldout")), set()
    for group in range(20):
        rng = np.random.default_rng(group)
        for each in shot_tasks._words(0, group):
            for make in (each.shot, each.query):
                (only,) = make(rng).objects
                assert (only.color, only.shape) in named
        for each in shot_tasks._digits(0, group):
            digits |= {digit_label(make(rng).ink) for make in (each.shot, each.query)}
    assert digits == set(HELD_OUT_DIGITS)
    assert not named & set(named_pairs("train"))


def test_clips_are_as_they_are_shuffled_or_still(tasks) -> None:
    for number in range(10):
        clip, shuffled, still = (
            frames(tasks[name].items[number].file) for name in ("motion", "motion-shuffled", "motion-still")
        )
        assert tasks["motion"].items[number].answer == tasks["motion-shuffled"].items[number].answer
        assert sorted(frame.tobytes() for frame in clip) == sorted(frame.tobytes() for frame in shuffled)
        assert len({frame.tobytes() for frame in still}) == 1
        assert still[0].tobytes() in {frame.tobytes() for frame in clip}
    assert any(
        not np.array_equal(*(frames(tasks[name].items[number].file) for name in ("motion", "motion-shuffled")))
        for number in range(10)
    )


def test_opposite_directions_are_told_from_each_other_alone(tasks) -> None:
    task = tasks["opposite-shuffled"]
    for item in task.items:
        assert set(task.classes_of(item)) <= {item.answer, OPPOSITE[item.answer]}


def test_the_gain_of_nearness_is_the_difference_over_the_same_queries(tmp_path: Path, tasks) -> None:
    task = tasks["ten-digits"]
    right = [item.answer for item in task.items]
    wrong = ["no word"] * len(right)

    def run(folder: str, answers: dict[int, list[str]]) -> Path:
        lines = ["{}", *(
            Answered(Setting(shots, 0), item.name, (), answer).line()
            for shots, given in answers.items() for item, answer in zip(task.items, given, strict=True)
        )]
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "answers.jsonl").write_text("\n".join(lines) + "\n")
        return tmp_path / folder

    half = [*right[:150], *wrong[150:]]
    file = task.items[0].file.parent.parent / "task.toml"
    found = shots_that_matter.gain(run("nearest", {8: right, 16: half}), run("random", {8: half, 16: half}), file)
    assert found[8]["mean"] == pytest.approx(0.5)
    assert 0.4 < found[8]["low"] < 0.5 < found[8]["high"] < 0.6
    assert found[16] == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_a_run_asks_for_its_draws_and_controls(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shots_that_matter, "evaluated", lambda bundle, *options: {"options": options})
    runs = shots_that_matter.RUNS

    def options(name: str, controls: bool) -> tuple[str, ...]:
        return shots_that_matter.measure(runs[name], tmp_path, None, 3, tmp_path, controls)["options"]

    assert options("digits", True)[4:6] == ("--seeds", "3")
    assert options("digits", True)[-2:] == ("--controls", "shuffled,blank,text")
    assert options("digits", False) == options("digits", True)[:-2]
    assert "--seeds" not in options("motion", True)


def test_a_record_is_printed_by_shots_and_control(capsys) -> None:
    scores = [{"shots": shots, "control": control, "mean": 0.5, "low": 0.4, "high": 0.6}
              for shots, control in itertools.product((4, 8), ("none", "blank"))]
    shots_that_matter.print_record("words", json.loads(json.dumps({"items": 50, "chance": 0.25, "scores": scores})))
    assert capsys.readouterr().out.splitlines() == [
        "words: 50 queries, chance 25.0%",
        "    4 shots: as they are  50.0% (40.0% to 60.0%); blank  50.0% (40.0% to 60.0%)",
        "    8 shots: as they are  50.0% (40.0% to 60.0%); blank  50.0% (40.0% to 60.0%)",
    ]
