"""The items of a task whose pictures and clips can be read."""

from __future__ import annotations

from dataclasses import replace

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import DataError
from flamingo_rt.evaluation.task import Item, Task
from flamingo_rt.evaluation.task_prompts import visual_of
from flamingo_rt.processing.preprocess import decode_visual
from flamingo_rt.progress import Progress, silent

MOST_LEFT_OUT = 0.5  # of the items, or of the support


def with_readable_items(
    task: Task, config: FlamingoConfig, most: int | None = None, progress: Progress = silent
) -> Task:
    """The task without items that cannot be read, which are added to ``missing``, and with the first ``most`` of its
    items. Each picture is decoded once for that. Raises `DataError` when more than half of the items, or of the
    support, cannot be read."""
    items = task.items[:most]
    found: dict[Item, str | None] = {}
    with progress("pictures that can be read", len({*items, *task.support})) as advance:
        for item in dict.fromkeys([*items, *task.support]):
            found[item] = _fault(item, config)
            advance(1)
    for pool, name in ((items, "items"), (task.support, "support")):
        faulty = [item for item in pool if found[item] is not None]
        if pool and len(faulty) > MOST_LEFT_OUT * len(pool):
            raise DataError(f"{len(faulty)} of {len(pool)} {name} of {task.name} cannot be read; the first: "
                            f"{found[faulty[0]]}")
    return replace(
        task, items=tuple(item for item in items if found[item] is None),
        support=tuple(item for item in task.support if found[item] is None),
        missing=(*task.missing, *(reason for reason in found.values() if reason is not None)),
    )


def _fault(item: Item, config: FlamingoConfig) -> str | None:
    """The reason why an item's picture cannot be read; None for one that can."""
    visual = visual_of(item)
    if visual is None:
        return None
    try:
        decode_visual(visual, config)
    except DataError as error:
        return f"{item.name}: {error}"
    return None
