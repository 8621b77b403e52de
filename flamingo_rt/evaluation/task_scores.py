"""Scores of a task's answers: by number of shots and control, with intervals, and what the shots' pictures bring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flamingo_rt.evaluation.answer_accuracy import exact_match, first_answer, first_caption, vqa_accuracy
from flamingo_rt.evaluation.cider import cider
from flamingo_rt.evaluation.confidence_interval import Interval, bootstrap, bootstrap_difference
from flamingo_rt.evaluation.controls import Control
from flamingo_rt.evaluation.task import Item, Metric, Task
from flamingo_rt.evaluation.task_run import Answered, Setting


@dataclass(frozen=True)
class Score:
    """The mean score of all queries under a number of shots and a control, over all seeds, with a 95% interval;
    ``difference`` is what the shots as they are score above it, None for those themselves. ``seeds`` are the means of
    the seeds."""

    shots: int
    control: Control
    mean: Interval
    seeds: tuple[float, ...]
    difference: Interval | None = None


def task_scores(task: Task, answers: Sequence[Answered]) -> list[Score]:
    """The scores of a run in which every query was answered under every setting that appears.

    Queries that were answered after the same shots stand or fall with them: intervals draw them as a group. Where all
    queries have the same shots, they are drawn one by one, and the interval holds for these shots alone.
    """
    by_setting: dict[Setting, dict[str, Answered]] = {}
    for answered in answers:
        by_setting.setdefault(answered.setting, {})[answered.item] = answered
    rows: dict[tuple[int, Control], dict[int, np.ndarray]] = {}
    chosen: dict[tuple[int, Control], dict[int, list[tuple[str, ...]]]] = {}
    for setting, given in by_setting.items():
        scores = item_scores(task.metric, task.items, [given[item.name].answer for item in task.items])
        rows.setdefault((setting.shots, setting.control), {})[setting.seed] = scores
        shots_of = [given[item.name].shots for item in task.items]
        chosen.setdefault((setting.shots, setting.control), {})[setting.seed] = shots_of
    found = []
    for (shots, control), seeds in rows.items():
        values, groups = _stacked(seeds), _groups(chosen[shots, control])
        plain = rows.get((shots, "none"))
        difference = None
        if control != "none" and plain is not None:
            difference = bootstrap_difference(_stacked(plain), values, groups)
        found.append(Score(shots, control, bootstrap(values, groups), tuple(values.mean(1).tolist()), difference))
    return found


def item_scores(metric: Metric, items: Sequence[Item], answers: Sequence[str]) -> np.ndarray:
    """The score of each answer, float64 [items]: from 0 to 1, of CIDEr from 0 on."""
    if metric == "cider":
        captions = [first_caption(text) for text in answers]
        return np.array(cider(captions, [item.answers for item in items]))
    judge = {"vqa": _vqa, "exact": _exact, "accuracy": _accuracy}[metric]
    return np.array([float(judge(text, item)) for text, item in zip(answers, items, strict=True)])


def _vqa(text: str, item: Item) -> float:
    return vqa_accuracy(first_answer(text), item.answers)


def _exact(text: str, item: Item) -> float:
    return exact_match(first_answer(text), item.answers)


def _accuracy(text: str, item: Item) -> float:
    return text == item.answer


def _stacked(seeds: Mapping[int, np.ndarray]) -> np.ndarray:
    return np.stack([seeds[seed] for seed in sorted(seeds)])


def _groups(chosen: Mapping[int, Sequence[tuple[str, ...]]]) -> list[tuple[tuple[str, ...], ...]] | None:
    """The shots of each query under all seeds, by which queries are told apart; None where all have the same."""
    groups = list(zip(*(chosen[seed] for seed in sorted(chosen)), strict=True))
    return groups if len(set(groups)) > 1 else None
