"""A task's scores as lines of a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flamingo_rt.evaluation.confidence_interval import Interval
from flamingo_rt.evaluation.controls import Control
from flamingo_rt.evaluation.task import Metric
from flamingo_rt.evaluation.task_scores import Score

COLUMNS = ("shots", "control", "score", "95% interval", "below the shots as they are", "95% interval")
_SHOWN: dict[Control, str] = {
    "none": "as they are", "shuffled": "pictures shuffled", "blank": "pictures blank", "text": "text only",
    "labels": "answers permuted",
}


def shown_control(control: Control) -> str:
    """A control in words."""
    return _SHOWN[control]


def table_lines(metric: Metric, scores: Sequence[Score]) -> list[list[str]]:
    """The lines below `COLUMNS`. CIDEr is multiplied by 100, as it is usually quoted; the others are percentages."""
    lines = []
    for score in scores:
        control = "" if score.shots == 0 else shown_control(score.control)
        less = ["", ""] if score.difference is None else _cells(metric, score.difference)
        lines.append([str(score.shots), control, *_cells(metric, score.mean), *less])
    return lines


def _cells(metric: Metric, interval: Interval) -> list[str]:
    unit = "" if metric == "cider" else "%"
    return [f"{100 * interval.mean:.1f}{unit}", f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"]


def score_record(score: Score) -> dict[str, Any]:
    """A score as JSON data."""
    def interval(value: Interval) -> dict[str, float]:
        return {"mean": round(value.mean, 6), "low": round(value.low, 6), "high": round(value.high, 6)}

    found: dict[str, Any] = {"shots": score.shots, "control": score.control, **interval(score.mean),
                             "seeds": [round(mean, 6) for mean in score.seeds]}
    if score.difference is not None:
        found["brings"] = interval(score.difference)
    return found
