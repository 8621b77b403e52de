"""The prompts of a task: shots and query in the model's form, or with the task's own text before answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.evaluation.controls import Shot, blank_picture
from flamingo_rt.evaluation.task import Item, Task
from flamingo_rt.processing import tasks
from flamingo_rt.processing.prompt import Part
from flamingo_rt.processing.visuals import Image, Video, Visual


def visual_of(item: Item) -> Visual | None:
    """The picture or clip of an item, not decoded yet; None for one of text alone."""
    if item.file is None:
        return None
    return Video(item.file) if item.clip else Image(item.file)


def with_task_form(config: FlamingoConfig, task: Task) -> FlamingoConfig:
    """The model's configuration with the task's own text before answers, where it has one."""
    if task.before is None:
        return config
    asks = task.kind == "question" or any(item.question is not None for item in task.items)
    key = "question" if asks else "caption"
    return replace(config, prompts=replace(config.prompts, **{key: task.before}))


def shot_parts(config: FlamingoConfig, shots: Sequence[Shot], after: str = "") -> list[Part]:
    """The shots as parts of a prompt, each with its end of chunk and the text ``after`` it. ``config`` has the task's
    form."""
    parts: list[Part] = []
    for shot in shots:
        visual = shot.visual or blank_picture()
        if shot.question is None:
            found = tasks.caption_shot(config, visual, shot.answer)
        else:
            found = tasks.question_shot(config, visual, shot.question, shot.answer)
        parts += found if shot.visual is not None else [part for part in found if isinstance(part, str)]
        parts += [after] if after else []
    return parts


def query_parts(config: FlamingoConfig, item: Item) -> list[Part]:
    """The query as parts of a prompt, to be continued by its answer. ``config`` has the task's form."""
    visual = visual_of(item)
    if item.question is not None:
        return tasks.question_prompt(config, [] if visual is None else visual, item.question)
    return [config.prompts.caption] if visual is None else tasks.caption_prompt(config, visual)
