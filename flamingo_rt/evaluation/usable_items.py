"""The items of a task whose pictures and clips can be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import DataError
from flamingo_rt.evaluation.task import Task
from flamingo_rt.evaluation.task_prompts import visual_of
from flamingo_rt.processing.preprocess import decode_visual
from flamingo_rt.processing.visuals import Visual
from flamingo_rt.progress import Progress, silent

MOST_LEFT_OUT = 0.5  # of the items, or of the support


def with_readable_items(
    task: Task, config: FlamingoConfig, most: int | None = None, progress: Progress = silent
) -> Task:
    """The task without items that cannot be read, which are added to ``missing``, and with the first ``most`` of its
    items. Each file is decoded once for that. Raises `DataError` when more than half of the items, or of the
    support, cannot be read."""
    items = task.items[:most]
    everything = dict.fromkeys([*items, *task.support])
    visuals = {(item.file, item.clip): visual for item in everything if (visual := visual_of(item)) is not None}
    faults: dict[tuple[Path | None, bool], str | None] = {}
    with progress("pictures that can be read", len(visuals)) as advance:
        for key, visual in visuals.items():
            faults[key] = _fault(visual, config)
            advance(1)
    found = {item: faults.get((item.file, item.clip)) for item in everything}
    for pool, name in ((items, "items"), (task.support, "support")):
        faulty = [item for item in pool if found[item] is not None]
        if pool and len(faulty) > MOST_LEFT_OUT * len(pool):
            raise DataError(f"{len(faulty)} of {len(pool)} {name} of {task.name} cannot be read; the first: "
                            f"{faulty[0].name}: {found[faulty[0]]}")
    return replace(
        task, items=tuple(item for item in items if found[item] is None),
        support=tuple(item for item in task.support if found[item] is None),
        missing=(*task.missing, *(f"{item.name}: {reason}" for item, reason in found.items() if reason is not None)),
    )


def _fault(visual: Visual, config: FlamingoConfig) -> str | None:
    """The reason why a picture or clip cannot be read; None for one that can."""
    try:
        decode_visual(visual, config)
    except DataError as error:
        return str(error)
    return None
