"""Numbers of a progress bar: how a run has been going over its last steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from flamingo_rt.training.run_log import StepReport

WINDOW = 50  # steps over which numbers are taken: one step's loss and time say little


@dataclass(frozen=True)
class Progress:
    """The state of a run after ``step`` of ``steps``, and the seconds that are left.

    Over the last `WINDOW` steps: the mean loss of each dataset, tokens (in stage 1 pictures) of all ranks in a second,
    the share of time that was spent waiting for data, and the share of the measured matrix rate that was reached, where
    that is known.
    """

    step: int
    steps: int
    loss: Mapping[str, float]
    tokens_per_second: float
    waiting_share: float
    mfu: float | None
    seconds_left: float


class RunProgress:
    """Makes a `Progress` of the reports of a run of ``steps`` steps."""

    def __init__(self, steps: int, window: int = WINDOW) -> None:
        self._steps, self._window = steps, window
        self._losses: dict[str, deque[float]] = {}
        self._reports: deque[StepReport] = deque(maxlen=window)
        self._first = True

    def after(self, report: StepReport) -> Progress:
        """The progress after one more step."""
        for name, loss in report.losses.items():
            self._losses.setdefault(name, deque(maxlen=self._window)).append(loss)
        if self._first and self._reports:  # the first step pays for what is set up once
            self._reports.clear()
            self._first = False
        self._reports.append(report)
        reports = self._reports
        seconds = max(sum(each.seconds for each in reports), 1e-9)
        known = [each for each in reports if each.mfu is not None]
        return Progress(
            step=report.step, steps=self._steps,
            loss={name: sum(losses) / len(losses) for name, losses in self._losses.items()},
            tokens_per_second=sum(each.tokens for each in reports) / seconds,
            waiting_share=sum(each.waiting for each in reports) / seconds,
            mfu=_mean_mfu(known) if known else None,
            seconds_left=seconds / len(reports) * max(0, self._steps - report.step),
        )


def _mean_mfu(reports: list[StepReport]) -> float:
    """The share of the rate over all these steps together."""
    seconds = max(sum(report.seconds for report in reports), 1e-9)
    return sum((report.mfu or 0.0) * report.seconds for report in reports) / seconds
