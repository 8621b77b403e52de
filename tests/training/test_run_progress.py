"""Numbers of the progress bar, over the last steps."""

from __future__ import annotations

import pytest

from flamingo_rt.training.run_log import StepReport
from flamingo_rt.training.run_progress import RunProgress


def report(step: int, seconds: float = 1.0, loss: float = 1.0, mfu: float | None = None) -> StepReport:
    return StepReport(step, {"pairs": loss}, 1.0, 1e-4, tokens=100, seconds=seconds, waiting=0.1, mfu=mfu)


def test_numbers_are_those_of_the_last_steps() -> None:
    progress = RunProgress(steps=10, window=3)
    for step, (seconds, loss, mfu) in enumerate([(9, 9, 0.9), (9, 8, 0.9), (1, 3, 0.4), (2, 4, 0.1), (1, 5, 0.4)], 1):
        now = progress.after(report(step, seconds, loss, mfu))
    assert (now.step, now.steps) == (5, 10)
    assert now.loss == {"pairs": 4.0}
    assert now.tokens_per_second == pytest.approx(300 / 4)
    assert now.waiting_share == pytest.approx(0.3 / 4)
    assert now.mfu == pytest.approx((0.4 + 0.2 + 0.4) / 4)  # what all steps reached in all their time
    assert now.seconds_left == pytest.approx(4 / 3 * 5)


def test_the_first_step_tells_the_speed_until_there_is_another() -> None:
    progress = RunProgress(steps=3)
    assert progress.after(report(1, seconds=10)).seconds_left == 20
    now = progress.after(report(2, seconds=2))
    assert now.seconds_left == 2
    assert now.tokens_per_second == 50
    assert progress.after(report(3, seconds=4)).tokens_per_second == pytest.approx(200 / 6)


def test_datasets_that_take_turns_keep_their_losses() -> None:
    progress = RunProgress(steps=4)
    progress.after(StepReport(1, {"pairs": 2.0}, 1.0, 1e-4, 100, 1.0, 0.0))
    now = progress.after(StepReport(2, {"pages": 4.0}, 1.0, 1e-4, 100, 1.0, 0.0))
    assert now.loss == {"pairs": 2.0, "pages": 4.0}
    assert now.mfu is None
