"""``flamingo-rt evaluate task``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flamingo_rt.cli.backend_option import BackendChoice, backend_options
from flamingo_rt.cli.hints import hint_at_absent_classes
from flamingo_rt.cli.interrupts import on_interrupt
from flamingo_rt.cli.numbers import Counts, count
from flamingo_rt.cli.paths import READ, WRITTEN
from flamingo_rt.cli.progress_bar import ProgressBar
from flamingo_rt.printable import printable

if TYPE_CHECKING:
    from flamingo_rt.evaluation.shots import Selection
    from flamingo_rt.evaluation.task import Task
    from flamingo_rt.evaluation.task_scores import Score
    from flamingo_rt.runtime.model import Model

MOST_SHOTS = 1000
MOST_NAMED = 20  # items that are left out


def _shots(context: click.Context, parameter: click.Parameter, counts: tuple[int, ...]) -> tuple[int, ...]:
    wrong = next((number for number in counts if not 0 <= number <= MOST_SHOTS), None)
    if wrong is not None:
        raise click.BadParameter(f"{wrong} is not from 0 to {MOST_SHOTS}")
    return tuple(dict.fromkeys(counts))


def _controls(context: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
    from flamingo_rt.evaluation.controls import CONTROLS

    names = tuple(dict.fromkeys(part for part in text.split(",") if part))
    unknown = next((name for name in names if name not in CONTROLS or name == "none"), None)
    if unknown is not None:
        raise click.BadParameter(f"{unknown!r} is unknown; known: {', '.join(CONTROLS[1:])}")
    return names


@click.command("task")
@click.argument("file", type=READ, metavar="TASK.toml")
@click.option("--model", "path", type=READ, metavar="FOLDER",
              help="A bundle, or a checkpoint. Default: the model in the package.")
@click.option("--out", type=WRITTEN, metavar="FOLDER", required=True,
              help="Folder for the answers, the scores as JSON, and the page.")
@click.option("--shots", type=Counts(), default="0,4", show_default=True, callback=_shots, metavar="A,B,C",
              help="Numbers of shots.")
@click.option("--seeds", type=count(), default=1, show_default=True, metavar="N", help="Draws of the shots.")
@click.option("--select", type=click.Choice(["random", "balanced", "rices"]), default="random", show_default=True,
              help="The choice of shots; rices: nearest to the query by the vision encoder's features.")
@click.option("--redraw", is_flag=True, help="Draw shots for each query anew; slower, as no prompt is shared.")
@click.option("--controls", default="", callback=_controls, metavar="NAME,…",
              help="Also with shots changed: shuffled (pictures), blank, text (no pictures), labels (permuted).")
@click.option("--orders", type=click.IntRange(1, 100), default=6, show_default=True, metavar="N",
              help="Orders of the shots over which the likelihood of a class is averaged.")
@click.option("--plain-zero", is_flag=True, help="0 shots are no shots; by default two without their pictures.")
@click.option("--index", type=WRITTEN, metavar="FILE", help="With rices: file that keeps the pictures' features.")
@click.option("--items", "most", type=count(), metavar="N", help="Ask about the first N items alone.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@backend_options()
@click.option("--json", "as_json", is_flag=True, help="One JSON object with the scores.")
def evaluate_task(
    file: Path, path: Path | None, out: Path, shots: Sequence[int], seeds: int, select: Selection, redraw: bool,
    controls: Sequence[Any], orders: int, plain_zero: bool, index: Path | None, most: int | None, resume: bool,
    chosen: BackendChoice, as_json: bool,
) -> None:
    """Measure a model on a task with shots, and what the shots' pictures bring.

    A task is a file that names items, a pool of shots, a prompt and a metric: docs/evaluation.md.

    \b
    Examples:
      flamingo-rt evaluate task captions.toml --shots 0,4,8 --out runs/captions
      flamingo-rt evaluate task names.toml --shots 4,16 --seeds 3 --controls shuffled,blank,text --out runs/names
      flamingo-rt evaluate task names.toml --shots 4 --select rices --index features.npz --out runs/nearest
    """
    from flamingo_rt.evaluation.task_file import read_task
    from flamingo_rt.evaluation.task_plan import TaskPlan
    from flamingo_rt.evaluation.task_run import has_answers, require_new, require_same
    from flamingo_rt.evaluation.task_scores import task_scores
    from flamingo_rt.evaluation.usable_items import with_readable_items
    from flamingo_rt.files import check_file
    from flamingo_rt.loading import PACKAGED_BUNDLE

    plan = TaskPlan(shots, seeds, select, redraw, controls, orders, plain_zero, index)
    if index is not None:
        check_file(index, True, "--index")
    written = out / "answers.jsonl"
    check_file(written, True)
    require_new(written, resume)
    task, progress = read_task(file), ProgressBar()

    def interrupted() -> str:
        if has_answers(written):
            return f"the answers are in {out}: go on with --resume"
        kept = "" if index is None or not index.exists() else f", the features so far are in {index}"
        return f"nothing was answered{kept}"

    with on_interrupt(interrupted):
        model = chosen.load(path)
        task = with_readable_items(task, model.config, most, progress)
        _tell_left_out(task)
        about = plan.about(model, path or PACKAGED_BUNDLE, task)
        if resume:
            require_same(written, about)
        run, asked = plan.run_of(model, task, progress), len(plan.settings) * len(task.items)
        if select == "random":  # the nearest shots leave classes out on purpose
            hint_at_absent_classes(*run.lacking(plan.settings))
        with progress(f"{len(plan.settings)} settings of {len(task.items)} items", asked) as done:
            answers = run.answers(plan.settings, written, about, resume, done)
        scores = task_scores(task, answers)
        record = _record(model, task, select, scores)
        _write(out, task, record, scores, answers)
    if as_json:
        click.echo(json.dumps(record))
    else:
        _print(model, task, scores)
        click.echo(f"wrote {printable(str(out))}", err=True)


def _tell_left_out(task: Task) -> None:
    """Name the first items that are left out, and count the others, which scores.json names."""
    for reason in task.missing[:MOST_NAMED]:
        click.echo(f"left out: {printable(reason)}", err=True)
    if len(task.missing) > MOST_NAMED:
        click.echo(f"left out: {len(task.missing) - MOST_NAMED} more, {len(task.missing)} in all", err=True)


def _record(model: Model, task: Task, select: str, scores: Sequence[Score]) -> dict[str, Any]:
    from flamingo_rt.evaluation.task_table import score_record

    chance = {} if task.chance is None else {"chance": round(task.chance, 6)}
    return {
        "task": task.name, "kind": task.kind, "metric": task.metric, "model": model.config.name,
        "backend": model.backend.name, "select": select, "items": len(task.items), "support": len(task.support),
        "left_out": list(task.missing), **chance, "scores": [score_record(score) for score in scores],
    }


def _write(out: Path, task: Task, record: dict[str, Any], scores: Sequence[Score], answers: Sequence[Any]) -> None:
    from flamingo_rt.evaluation.task_page import html_page
    from flamingo_rt.evaluation.task_run import PAGE, SCORES
    from flamingo_rt.files import replacing_file

    facts = [f"{record['model']}, backend {record['backend']}; {record['items']} items, {record['support']} to draw "
             f"shots from, chosen by {record['select']}; metric {record['metric']}"
             + (f", chance {record['chance']:.1%}" if "chance" in record else "")
             + (f"; {len(task.missing)} left out" if task.missing else "")]
    for name, content in ((SCORES, json.dumps(record, indent=1) + "\n"),
                          (PAGE, html_page(task, task.name, facts, scores, answers))):
        with replacing_file(out / name) as beside:
            beside.write_text(content, encoding="utf-8")


def _print(model: Model, task: Task, scores: Sequence[Score]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from flamingo_rt.evaluation.task_table import COLUMNS, table_lines

    title = f"{printable(task.name)}: {task.metric} of {printable(model.config.name)}, backend {model.backend.name}"
    table = Table(*COLUMNS, title=escape(title), title_justify="left")
    for line in table_lines(task.metric, scores):
        table.add_row(*map(escape, line))
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)
    if task.chance is not None:
        click.echo(f"chance: {task.chance:.1%}")
    if task.missing:
        click.echo(f"left out: {len(task.missing)}")
