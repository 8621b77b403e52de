"""``flamingo-rt evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flamingo_rt.cli.backend_option import BackendChoice, backend_options
from flamingo_rt.cli.evaluate_task import evaluate_task
from flamingo_rt.cli.interrupts import on_interrupt
from flamingo_rt.cli.numbers import count
from flamingo_rt.cli.paths import READ
from flamingo_rt.cli.progress_bar import ProgressBar
from flamingo_rt.printable import printable

if TYPE_CHECKING:
    from flamingo_rt.evaluation.scene_accuracy import SceneAccuracy
    from flamingo_rt.runtime.model import Model
    from flamingo_rt.training.scenes import Layout


@click.group()
def command() -> None:
    """Measure how often a model is right.

    \b
    Examples:
      flamingo-rt evaluate scenes --model bundle
      flamingo-rt evaluate task names.toml --model bundle --shots 0,4 --out runs/names
    """


command.add_command(evaluate_task)


@command.command("scenes")
@click.option("--model", "path", type=READ, metavar="FOLDER",
              help="A bundle, or a checkpoint. Default: the model in the package.")
@backend_options()
@click.option("--scenes", type=count(), default=300, show_default=True, metavar="N", help="Pictures to draw.")
@click.option("--questions", type=click.IntRange(0, 1000), default=4, show_default=True, metavar="N",
              help="Questions about each picture, at most: a simple one has fewer; 0: captions alone.")
@click.option("--layout", type=click.Choice(["square", "wide", "single"]), default="square", show_default=True,
              help="Shape of the pictures; wide: from 1:2 to 2:1; single: that, with one object of any size.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: shares, and counts of each kind.")
def evaluate_scenes(
    path: Path | None, chosen: BackendChoice, scenes: int, questions: int, layout: Layout, as_json: bool
) -> None:
    """Count right captions and answers about drawn scenes that training does not use.

    For models of flamingo-rt train. A caption is right when it names the colour and shape of every object and nothing
    else. Pictures, questions and handwriting are the same in every run. Needs the extra train.

    \b
    Examples:
      flamingo-rt evaluate scenes
      flamingo-rt evaluate scenes --model bundle --scenes 100 --json
    """
    from flamingo_rt.evaluation.scene_accuracy import scene_accuracy

    with on_interrupt(lambda: "nothing was printed"):
        model = chosen.load(path)
        with ProgressBar()(f"{scenes} drawn scenes", scenes * (1 + questions)) as advance:
            accuracy = scene_accuracy(model, scenes, questions, advance, layout)
    if as_json:
        click.echo(json.dumps(_record(model, scenes, layout, accuracy)))
    else:
        _print(model, accuracy)


def _record(model: Model, scenes: int, layout: Layout, accuracy: SceneAccuracy) -> dict[str, Any]:
    """The JSON object; counts are [right, all]."""
    return {
        "model": model.config.name,
        "backend": model.backend.name,
        "scenes": scenes,
        "layout": layout,
        "caption_accuracy": round(accuracy.caption_share, 4),
        "captions": {kind: [sum(rights), len(rights)] for kind, rights in sorted(accuracy.captions.items())},
        "questions": sum(map(len, accuracy.questions.values())),
        "question_accuracy": round(accuracy.question_share, 4) if accuracy.questions else None,
        "answers": {kind: [sum(rights), len(rights)] for kind, rights in sorted(accuracy.questions.items())},
    }


def _print(model: Model, accuracy: SceneAccuracy) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    name = escape(printable(model.config.name))
    table = Table("", "right", "of", "share", title=f"{name}, backend {model.backend.name}", title_justify="left")
    for title, kinds in (("captions", accuracy.captions), ("answers", accuracy.questions)):
        if not kinds:
            continue
        table.add_row(title, *_cells([right for rights in kinds.values() for right in rights]))
        for kind, rights in sorted(kinds.items()):
            table.add_row(f"  {kind}", *_cells(rights), style="dim")
        table.add_section()
    Console().print(table)


def _cells(rights: list[bool]) -> tuple[str, str, str]:
    return str(sum(rights)), str(len(rights)), f"{sum(rights) / len(rights):.1%}"
