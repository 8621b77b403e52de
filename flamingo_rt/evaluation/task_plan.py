"""The way a task is run: how many shots, how they are chosen, and what is done to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from flamingo_rt.errors import UsageError
from flamingo_rt.evaluation.controls import Control
from flamingo_rt.evaluation.feature_index import encoder_features
from flamingo_rt.evaluation.shots import (
    BalancedShots,
    GroupShots,
    NearestShots,
    RandomShots,
    Selection,
    ShotChooser,
    require_support,
)
from flamingo_rt.evaluation.task import Item, Task
from flamingo_rt.evaluation.task_digest import task_digest
from flamingo_rt.evaluation.task_run import ZERO_SHOTS, Setting, TaskRun, settings_of
from flamingo_rt.progress import Progress, silent
from flamingo_rt.runtime.model import Model


@dataclass(frozen=True)
class TaskPlan:
    """Numbers of shots, draws of them (``seeds``), their choice, with ``redraw`` anew for each query, controls;
    ``orders`` of the shots over which likelihoods of classes are averaged; with ``plain_zero`` 0 shots are none, and
    not two without their pictures. ``index`` is a file that keeps the features which ``rices`` compares."""

    shots: Sequence[int]
    seeds: int = 1
    select: Selection = "random"
    redraw: bool = False
    controls: Sequence[Control] = ()
    orders: int = 6
    plain_zero: bool = False
    index: Path | None = None

    def __post_init__(self) -> None:
        """Raises `UsageError` for options that do not go together."""
        rices = self.select == "rices"
        if self.select not in get_args(Selection):
            raise UsageError(f"select is {self.select!r}; known: {', '.join(get_args(Selection))}")
        if any(count < 0 for count in self.shots) or self.seeds < 1 or self.orders < 1:
            raise UsageError(f"shots are {list(self.shots)}, seeds {self.seeds}, orders {self.orders}: give 0 shots or "
                             "more, and 1 or more of the others")
        if self.index is not None and not rices:
            raise UsageError("an index keeps the features that rices compares: select that, or leave index out")
        if rices and self.redraw:
            raise UsageError("rices has shots of its own for each query: leave redraw out")

    @property
    def settings(self) -> list[Setting]:
        """Every setting, in the order of the table."""
        return settings_of(dict.fromkeys(self.shots), self.seeds, self.controls)

    def run_of(self, model: Model, task: Task, progress: Progress = silent) -> TaskRun:
        """The task on a model, with shots chosen as planned. Raises `DataError` and `UsageError` for a support, or an
        index, with which that cannot be done."""
        self._require_support(task)
        supports = {group: task.support_of(group) for group in task.groups}
        chosen, zero = GroupShots(self._choosers(model, task, supports, progress)), None
        if self.select == "rices":  # nearest shots would say by their answers alone which pictures the query is like
            zero = GroupShots({group: RandomShots(support) for group, support in supports.items()})
        return TaskRun(model, task, chosen, self.orders, self.plain_zero, zero)

    def about(self, model: Model, folder: Path | None, task: Task) -> dict[str, Any]:
        """All that answers depend on beside their settings; ``folder`` is where the model was loaded from."""
        return {
            "model": model_identity(model, folder), "backend": model.backend.name, "task": task_digest(task),
            "select": self.select, "redraw": self.redraw, "orders": self.orders, "plain_zero": self.plain_zero,
        }

    def _require_support(self, task: Task) -> None:
        """Raise `DataError` where a query has fewer shots to choose from than are planned, before any work for them."""
        most = max(self.shots, default=0)
        require_support(task.items, task.support, most, "ask for fewer, or add support")
        if 0 in self.shots and not self.plain_zero:
            require_support(task.items, task.support, ZERO_SHOTS, f"0 shots stand as {ZERO_SHOTS} without their "
                            "pictures: add support, or leave them out (--plain-zero)")

    def _choosers(
        self, model: Model, task: Task, supports: Mapping[str, Sequence[Item]], progress: Progress
    ) -> Mapping[str, ShotChooser]:
        if self.select == "random":
            return {group: RandomShots(support, self.redraw) for group, support in supports.items()}
        if self.select == "balanced":
            return {group: BalancedShots(support, task.group_classes.get(group, task.classes), self.redraw)
                    for group, support in supports.items()}
        everything = [*task.support, *task.items]
        with progress(f"features of {len(everything)} pictures", len(everything)) as done:
            features = dict(zip(everything, encoder_features(model, everything, self.index, done), strict=True))
        return {group: NearestShots(support, features) for group, support in supports.items()}


def model_identity(model: Model, folder: Path | None) -> str:
    """A text that is another one for a model with other weights: the bundle's identity, or of the checkpoint in
    ``folder`` the sizes and times of its files, which to hash would take longer than to load them."""
    if model.identity is not None or folder is None:
        return model.identity or model.config.name
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return " ".join([model.config.name, *(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}"
                                          for file in files)])
