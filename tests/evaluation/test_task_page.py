"""The table, the JSON and the page of a task say what was measured, and names of strangers are text."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from flamingo_rt.evaluation.confidence_interval import Interval
from flamingo_rt.evaluation.task import Task
from flamingo_rt.evaluation.task_page import curves, html_page
from flamingo_rt.evaluation.task_run import Answered, Setting
from flamingo_rt.evaluation.task_scores import item_scores, task_scores
from flamingo_rt.evaluation.task_table import COLUMNS, score_record, table_lines


def answered(task: Task, setting: Setting, right: int) -> list[Answered]:
    """Answers of which the first ``right`` are right."""
    return [
        Answered(setting, item.name, (task.support[0].name,), item.answer if number < right else "none of them")
        for number, item in enumerate(task.items)
    ]


@pytest.fixture
def answers(captions: Task) -> list[Answered]:
    return [
        *answered(captions, Setting(0, 0), 1), *answered(captions, Setting(4, 0), 4),
        *answered(captions, Setting(4, 1), 2), *answered(captions, Setting(4, 0, "blank"), 1),
        *answered(captions, Setting(4, 1, "blank"), 1),
    ]


def test_scores_are_means_over_queries_and_seeds(captions, answers) -> None:
    zero, plain, blank = task_scores(captions, answers)
    assert (zero.shots, zero.control, zero.mean.mean, zero.difference) == (0, "none", 0.25, None)
    assert (plain.mean.mean, plain.seeds) == (0.75, (1.0, 0.5))
    assert plain.mean.low < 0.75 < plain.mean.high
    assert (blank.control, blank.mean.mean, blank.difference.mean) == ("blank", 0.25, 0.5)


def test_each_metric_judges_as_it_says(items) -> None:
    texts = [replace(item, question="What?", answers=("yes", "yes", "no")) for item in items[:2]]
    assert item_scores("exact", texts, ["Yes.", "maybe"]).tolist() == [1, 0]
    assert item_scores("vqa", texts, ["yes", "no"])[1] < item_scores("vqa", texts, ["yes", "no"])[0]
    assert item_scores("accuracy", items[:2], ["red circle", "red"]).tolist() == [1, 0]
    captions = [replace(items[0], answers=("a red cat sits here",)), replace(items[1], answers=("two blue dogs run",))]
    good, bad = item_scores("cider", captions, ["a red cat sits here", "a red cat sits here"])
    assert good > 1 > bad == pytest.approx(0, abs=0.2)


def test_the_table_has_a_line_for_each_score_in_percent(captions, answers) -> None:
    lines = table_lines("exact", task_scores(captions, answers))
    assert [line[:3] for line in lines] == [
        ["0", "", "25.0%"], ["4", "as they are", "75.0%"], ["4", "pictures blank", "25.0%"]]
    assert lines[2][4] == "50.0%"
    assert {len(line) for line in lines} == {len(COLUMNS)}
    assert table_lines("cider", task_scores(captions, answers))[1][2] == "75.0"


def test_a_record_has_what_the_pictures_bring(captions, answers) -> None:
    record = score_record(task_scores(captions, answers)[2])
    assert (record["mean"], record["brings"]["mean"], record["seeds"]) == (0.25, 0.5, [0.25, 0.25])


def test_the_page_is_whole_with_right_and_wrong_answers_and_their_shots(captions, answers) -> None:
    page = html_page(captions, "A <task> & more", ["of <b>"], task_scores(captions, answers), answers)
    assert "A &lt;task&gt; &amp; more" in page
    assert "<task>" not in page
    assert "<b>" not in page
    assert page.count('class="answer right"') == 4  # of the first seed
    assert 'class="answer wrong"' not in page
    assert page.count("<figure>") == 4
    assert "http" not in page.replace("http-equiv", ""), "it loads nothing"


def test_captions_are_best_and_worst_with_cider_times_100_as_in_the_table(captions, answers) -> None:
    task = replace(captions, metric="cider")
    page = html_page(task, "t", [], task_scores(captions, answers), answers)
    assert ">Best, with 4 shots<" in page
    assert ">Right, with" not in page
    scores = [replace(score, mean=Interval(1.5, 1.0, 2.0)) for score in task_scores(captions, answers)]
    words = [text.text for text in ElementTree.fromstring(curves(task, scores)).findall("text")]
    assert {"0", "50", "100", "150", "200"} <= set(words)


def test_answers_with_markup_and_pictures_that_are_gone_are_text(captions, answers, tmp_path) -> None:
    gone = replace(captions, support=(replace(captions.support[0], file=tmp_path / "<gone>.png"),))
    wrong = [replace(each, answer="<script>") for each in answers]
    page = html_page(gone, "t", [], task_scores(captions, wrong), wrong)
    assert "<script>" not in page
    assert "&lt;gone&gt;.png" in page
    assert page.count('class="answer wrong"') == 4


@pytest.mark.parametrize("high", [1.0, 0.0, 3.0])
def test_the_curves_are_an_image_of_every_score(captions, answers, high) -> None:
    task = replace(captions, metric="cider" if high != 1.0 else "exact")
    scores = [replace(score, mean=Interval(high / 2, 0.0, high)) for score in task_scores(captions, answers)]
    image = ElementTree.fromstring(curves(task, scores))
    assert len(image.findall("circle")) == 3
    for circle in image.findall("circle"):
        assert np.isfinite([float(circle.get("cx")), float(circle.get("cy"))]).all()
    words = [text.text for text in image.findall("text")]
    assert {"as they are", "pictures blank", "shots", "0", "4"} <= set(words)
