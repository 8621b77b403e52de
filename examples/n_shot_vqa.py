"""Draw how often a model is right about a task by number of shots, and what is left when their pictures are changed.

    python examples/n_shot_vqa.py --out shots.png
    python examples/n_shot_vqa.py vqav2.toml --model bundle --shots 0,4,8 --seeds 3 --answers vqav2.jsonl

A task is a file (docs/evaluation.md). With ``--answers`` an interrupted run goes on where it was. Needs matplotlib:
``pip install -e '.[cpu,bench]'``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    sys.exit(f"error: there is no {error.name}: pip install -e '.[cpu,bench]'")
except KeyboardInterrupt:  # loading takes seconds
    sys.exit("interrupted")

import flamingo_rt
from flamingo_rt import Model
from flamingo_rt.cli.progress_bar import ProgressBar
from flamingo_rt.errors import FlamingoError
from flamingo_rt.evaluation.controls import Control
from flamingo_rt.evaluation.task import Task
from flamingo_rt.evaluation.task_file import read_task
from flamingo_rt.evaluation.task_plan import TaskPlan
from flamingo_rt.evaluation.task_scores import Score, task_scores
from flamingo_rt.evaluation.task_table import shown_control
from flamingo_rt.evaluation.usable_items import with_readable_items
from flamingo_rt.files import replacing_file
from flamingo_rt.loading import PACKAGED_BUNDLE
from flamingo_rt.printable import printable
from flamingo_rt.progress import Progress, silent

TASK = Path(__file__).parent / "tasks" / "words.toml"
CONTROLS: tuple[Control, ...] = ("shuffled", "blank", "text")
# Colour, marker and dashes of each line, so that none is told by its colour alone.
LINES: dict[Control, tuple[str, str, str]] = {
    "none": ("#0072b2", "o", "-"), "shuffled": ("#d55e00", "s", "--"), "blank": ("#009e73", "^", "-."),
    "text": ("#cc79a7", "D", ":"),
}
SPREAD = 0.09  # between the lines at one number of shots, which would cover each other
STYLE: dict[Any, Any] = {
    "font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "axes.axisbelow": True, "text.parse_math": False,
}


def measure(
    model: Model, task: Task, plan: TaskPlan, folder: Path | None = None, answers: Path | None = None,
    progress: Progress = silent,
) -> tuple[Task, list[Score]]:
    """The task without items that cannot be read, which are named, and its scores by number of shots and control.
    The answers are kept in ``answers`` as they come; ``folder``, where the model is, tells its weights from others."""
    task = with_readable_items(task, model.config, progress=progress)
    for reason in task.missing:
        print(f"left out: {printable(reason)}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as beside:
        file = answers or Path(beside) / "answers.jsonl"
        run, about, settings = plan.run_of(model, task, progress), plan.about(model, folder, task), plan.settings
        with progress(f"{len(settings)} settings of {len(task.items)} items", len(settings) * len(task.items)) as done:
            answers_of_all = run.answers(settings, file, about, True, done)
        return task, task_scores(task, answers_of_all)


def draw(task: Task, scores: Sequence[Score]) -> Figure:
    """A line for each control, with a 95% interval at each number of shots, and the rate of guessing."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        counts = sorted({score.shots for score in scores})
        for number, control in enumerate(LINES):
            _draw_line(axes, control, scores, counts, SPREAD * (number - (len(LINES) - 1) / 2))
        if task.chance is not None:
            axes.axhline(task.chance, color="#777777", linewidth=1, linestyle=(0, (1, 2)), zorder=0)
            axes.text(1, task.chance, " guessing", transform=axes.get_yaxis_transform(), va="center", color="#777777")
        axes.set_xticks(range(len(counts)), [str(count) for count in counts])
        axes.set_xlabel("shots")
        if task.metric != "cider":
            axes.set_ylim(0, 1.04)
            axes.yaxis.set_major_formatter("{x:.0%}")
        axes.grid(axis="y", color="#e3e3e3")
        axes.set_title(f"{task.name}: {task.metric} of {len(task.items)} items, with 95% intervals")
        figure.legend(loc="outside lower center", ncols=len(LINES))
        return figure


def _draw_line(axes: Axes, control: Control, scores: Sequence[Score], counts: Sequence[int], shift: float) -> None:
    own = sorted((score for score in scores if score.control == control), key=lambda score: score.shots)
    if not own:  # not measured
        return
    color, marker, dashes = LINES[control]
    means = [score.mean.mean for score in own]
    below = [max(0.0, score.mean.mean - score.mean.low) for score in own]
    above = [max(0.0, score.mean.high - score.mean.mean) for score in own]
    axes.errorbar([counts.index(score.shots) + shift for score in own], means, (below, above), color=color,
                  marker=marker, linestyle=dashes, markersize=5, linewidth=1.6, elinewidth=1, capsize=2.5,
                  label=shown_control(control))


def counts(text: str) -> list[int]:
    """The numbers of a list such as 0,4,8."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", type=Path, default=TASK, help="default: examples/tasks/words.toml")
    parser.add_argument("--model", type=Path, help="a bundle or a checkpoint; default: the model in the package")
    parser.add_argument("--shots", type=counts, default="0,4,8,16", help="numbers of shots; default %(default)s")
    parser.add_argument("--select", choices=("random", "balanced", "rices"),
                        help="how shots are chosen; default: balanced for classes, random for other kinds")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the shots; default %(default)s")
    parser.add_argument("--answers", type=Path, help="file that keeps the answers")
    parser.add_argument("--out", type=Path, default=Path("shots.png"), help="PNG or SVG to write; %(default)s")
    options = parser.parse_args()
    task, folder = read_task(options.task), options.model or PACKAGED_BUNDLE
    select = options.select or ("balanced" if task.kind == "classes" else "random")
    plan = TaskPlan(options.shots, options.seeds, select, controls=CONTROLS)
    task, scores = measure(flamingo_rt.load(folder), task, plan, folder, options.answers, ProgressBar())
    for score in scores:
        control = "" if score.shots == 0 else shown_control(score.control)
        print(f"{score.shots} shots {control:18} {score.mean.mean:6.3f}  {score.mean.low:.3f} to {score.mean.high:.3f}")
    with replacing_file(options.out) as beside:
        draw(task, scores).savefig(beside, dpi=110)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    try:
        main()
    except FlamingoError as error:
        sys.exit(f"error: {printable(str(error))}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
