"""``--shot FILE TEXT`` and ``--task``: examples before a prompt, shared by ``infer`` and ``prompt compile``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from flamingo_rt.cli.paths import PATH_TEXT
from flamingo_rt.errors import UsageError

if TYPE_CHECKING:
    from flamingo_rt.processing.prompt import Part
    from flamingo_rt.runtime.model import Model

Shots = Sequence[tuple[str, ...]]


def shot_options(required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that adds ``--shot`` and ``--task`` to a command."""
    shot = click.option(
        "--shot", "shots", type=(PATH_TEXT, str), multiple=True, required=required, metavar="FILE TEXT",
        help="An example before the prompt: a picture and its text, such as 'Output: a cat'; repeatable.",
    )
    task = click.option(
        "--task", type=click.Choice(["caption", "vqa"]),
        help="Write each --shot in the model's form too: its TEXT is a caption, or QUESTION|ANSWER for vqa.",
    )
    return lambda command: shot(task(command))


def split_shots(shots: Sequence[tuple[str, str]], task: str | None) -> Shots:
    """Split shots into (file, text), or (file, question, answer) for vqa. Raises `UsageError` for a text without its
    two halves."""
    return [(file, *_question_and_answer(text)) if task == "vqa" else (file, text) for file, text in shots]


def shot_parts(model: Model, shots: Shots, task: str | None) -> list[Part]:
    """The shots as parts of a prompt, each with its end of chunk."""
    from flamingo_rt.processing.tasks import caption_shot, question_shot
    from flamingo_rt.processing.visuals import Image

    end = model.config.tokens.end_of_chunk
    parts: list[Part] = []
    for file, *texts in shots:
        if task is None:
            text = texts[0]
            parts += [Image(file), text if text.endswith(end) else text + end]
        else:
            parts += (caption_shot if task == "caption" else question_shot)(model.config, Image(file), *texts)
    return parts


def _question_and_answer(text: str) -> list[str]:
    """The two halves of a shot's text for vqa."""
    halves = text.split("|")
    if len(halves) != 2:
        raise UsageError(f"the --shot text {text!r} holds | {len(halves) - 1} times: with --task vqa give it once, "
                         "as QUESTION|ANSWER")
    return halves
