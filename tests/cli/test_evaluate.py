"""``flamingo-rt evaluate scenes``: what it counts, what it prints, and that a run is like every other."""

from __future__ import annotations

import json

import pytest

from flamingo_rt.evaluation import scene_accuracy as measured
from flamingo_rt.evaluation.scene_accuracy import SceneAccuracy, scene_accuracy
from flamingo_rt.loading import load

ACCURACY = SceneAccuracy(
    {"1 object(s)": [True, True, False], "digit": [True]}, {"color": [True, True], "count": [False, True]}
)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, str]]:
    """Requests to `scene_accuracy`, which is replaced: it returns `ACCURACY` at once."""
    asked: list[tuple[int, int, str]] = []

    def accuracy(model, count, questions, advance, layout) -> SceneAccuracy:
        asked.append((count, questions, layout))
        advance(count)
        return ACCURACY if questions else SceneAccuracy(ACCURACY.captions, {})

    monkeypatch.setattr(measured, "scene_accuracy", accuracy)
    return asked


def test_the_packaged_model_is_right_about_most_scenes(run) -> None:
    outcome = run("evaluate", "scenes", "--scenes", 6, "--questions", 1, "--threads", 1, "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert (found["model"], found["backend"], found["scenes"]) == ("tiny", "ort", 6)
    assert sum(total for _, total in found["captions"].values()) == 6
    assert sum(total for _, total in found["answers"].values()) == found["questions"] == 6
    assert found["caption_accuracy"] >= 0.8
    accuracy = scene_accuracy(load(threads=1), 6, 1)
    assert found["caption_accuracy"] == round(accuracy.caption_share, 4)
    assert found["question_accuracy"] == round(accuracy.question_share, 4)


def test_the_table_has_a_line_for_each_kind_and_one_for_all(run, bundle, counted) -> None:
    outcome = run("evaluate", "scenes", "--model", bundle, "--threads", 1)
    assert outcome.code == 0
    assert counted == [(300, 4, "square")]
    rows = [line.strip("│┃ ").split("│") for line in outcome.out.splitlines() if "%" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["captions", "3", "4", "75.0%"], ["1 object(s)", "2", "3", "66.7%"], ["digit", "1", "1", "100.0%"],
        ["answers", "3", "4", "75.0%"], ["color", "2", "2", "100.0%"], ["count", "1", "2", "50.0%"],
    ]
    assert "300 drawn scenes" in outcome.err  # the progress


def test_captions_alone_leave_the_answers_out(run, bundle, counted) -> None:
    chosen = ["evaluate", "scenes", "--model", bundle, "--threads", 1, "--scenes", 4, "--questions", 0,
              "--layout", "wide"]
    assert "answers" not in run(*chosen).out
    found = json.loads(run(*chosen, "--json").out)
    assert (found["layout"], found["questions"], found["question_accuracy"], found["answers"]) == ("wide", 0, None, {})
    assert found["captions"] == {"1 object(s)": [2, 3], "digit": [1, 1]}
    assert counted == [(4, 0, "wide")] * 2


def test_an_interrupt_says_that_nothing_was_printed(run, bundle, monkeypatch) -> None:
    def interrupt(*arguments: object) -> SceneAccuracy:
        raise KeyboardInterrupt

    monkeypatch.setattr(measured, "scene_accuracy", interrupt)
    outcome = run("evaluate", "scenes", "--model", bundle, "--threads", 1)
    assert (outcome.code, outcome.out) == (130, "")
    assert "interrupted: nothing was printed" in outcome.err
