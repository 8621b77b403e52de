"""Accuracy of a bundle on what its prompt alone tells: new words, digits that it never saw, the way something moves.

    python -m benchmarks.shots_that_matter [--model NAME=BUNDLE …] [--tasks words,digits,…] [--seeds N]
        [--no-controls]

The tasks are those of `shot_tasks.py`; each is run by ``flamingo-rt evaluate task``. Queries of a group share a draw of
shots, so that there are several draws. Without ``--model`` it is the one in the package. Prints a table, and writes a
dated result to ``benchmarks/results``. Needs the extra ``train``, which draws the pictures; the evaluation itself needs
no torch.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dated_result import RESULTS, write_result
from benchmarks.evaluated_bundles import bundles_asked, evaluated, named_bundle
from benchmarks.shot_tasks import KINDS, write_shot_tasks
from flamingo_rt.evaluation.confidence_interval import bootstrap_difference
from flamingo_rt.evaluation.task import Item
from flamingo_rt.evaluation.task_file import read_task
from flamingo_rt.evaluation.task_run import Answered
from flamingo_rt.evaluation.task_scores import item_scores

CONTROLS = ("--controls", "shuffled,blank,text")
MOTION = ("--shots", "0", "--plain-zero")


@dataclass(frozen=True)
class Measured:
    """A run of ``evaluate task``: the task's name, how shots are chosen, and whether by chance."""

    task: str
    options: tuple[str, ...]
    drawn: bool = True


RUNS: dict[str, Measured] = {
    "words": Measured("words", ("--shots", "0,4,8,16,32", "--select", "balanced", *CONTROLS)),
    **{name: Measured(name, ("--shots", f"{KINDS[name][1]},{4 * KINDS[name][1]}", "--select", "balanced", *CONTROLS))
       for name in KINDS if name != "words"},
    "digits": Measured("digits", ("--shots", "0,3,6,12,24", "--select", "balanced", *CONTROLS)),
    "ten-digits": Measured("ten-digits", ("--shots", "8,16", "--redraw")),
    "ten-digits, nearest": Measured("ten-digits", ("--shots", "8,16", "--select", "rices"), drawn=False),
    "motion": Measured("motion", MOTION, drawn=False),
    "motion-shuffled": Measured("motion-shuffled", MOTION, drawn=False),
    "motion-still": Measured("motion-still", MOTION, drawn=False),
    "opposite-shuffled": Measured("opposite-shuffled", MOTION, drawn=False),
}
NEAREST, RANDOM = "ten-digits, nearest", "ten-digits"
ALL = ",".join(name for name in RUNS if name != NEAREST)


def measure(
    run: Measured, task: Path, bundle: str | None, seeds: int, out: Path, controls: bool = True
) -> dict[str, Any]:
    """The record that ``evaluate task --json`` prints; without ``controls``, of the shots as they are alone."""
    draws = ["--seeds", str(seeds)] if run.drawn else []
    options = run.options if controls else [option for option in run.options if option not in CONTROLS]
    return evaluated(bundle, "task", str(task), "--out", str(out), *draws, *options)


def gain(nearest: Path, random: Path, task: Path) -> dict[int, dict[str, float]]:
    """The score of shots by nearness above that of random ones, by their number, with its interval over queries."""
    items = read_task(task).items
    scores, others = (_scores(folder, items) for folder in (nearest, random))
    found = {}
    for shots, values in scores.items():
        interval = bootstrap_difference(values, others[shots])
        found[shots] = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return found


def _scores(folder: Path, items: Sequence[Item]) -> dict[int, np.ndarray]:
    """Whether each answer of a run is right, float64 [seeds, items], by the number of shots."""
    lines = (folder / "answers.jsonl").read_text().splitlines()[1:]
    given: dict[int, dict[int, dict[str, str]]] = {}
    for answered in map(Answered.from_line, lines):
        of_seed = given.setdefault(answered.setting.shots, {}).setdefault(answered.setting.seed, {})
        of_seed[answered.item] = answered.answer
    return {shots: np.stack([item_scores("accuracy", items, [answers[item.name] for item in items])
                             for _, answers in sorted(seeds.items())])
            for shots, seeds in given.items()}


def print_record(name: str, record: dict[str, Any]) -> None:
    """Print a run's scores, a line for each number of shots: as they are, then under each control."""
    print(f"{name}: {record['items']} queries, chance {record['chance']:.1%}")
    for shots in dict.fromkeys(score["shots"] for score in record["scores"]):
        parts = [f"{score['control'].replace('none', 'as they are')} {score['mean']:6.1%} "
                 f"({score['low']:.1%} to {score['high']:.1%})"
                 for score in record["scores"] if score["shots"] == shots]
        print(f"  {shots:3} shots: {'; '.join(parts)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", type=named_bundle, default=[], metavar="NAME=BUNDLE",
                        help="may be given again")
    parser.add_argument("--tasks", default=ALL, help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the shots; default %(default)s")
    parser.add_argument("--no-controls", action="store_true", help="the shots as they are alone: a quarter of the time")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_args()
    tasks_asked = options.tasks.split(",")
    names = [name for name in RUNS if name.split(",")[0] in tasks_asked]
    unknown = [task for task in tasks_asked if task not in {name.split(",")[0] for name in RUNS}]
    if unknown:
        parser.error(f"--tasks {unknown[0]}: known are {ALL}")
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        tasks = write_shot_tasks(Path(folder) / "tasks")
        for model, bundle in bundles_asked(options.model).items():
            print(f"== {model}", flush=True)
            found = measured[model] = {}
            for name in names:
                out = Path(folder) / model / name
                task = tasks[RUNS[name].task]
                found[name] = measure(RUNS[name], task, bundle, options.seeds, out, not options.no_controls)
                print_record(name, found[name])
            if NEAREST in found and RANDOM in found:
                place = Path(folder) / model
                found["gain of nearness"] = gain(place / NEAREST, place / RANDOM, tasks[RANDOM])
                print(f"gain of the nearest shots: {found['gain of nearness']}", flush=True)
    subject = "-".join(["shots-that-matter", *(tasks_asked if options.tasks != ALL else ()),
                        *(name for name, _ in options.model)])
    path = write_result(options.results, subject, {"seeds": options.seeds, "runs": names,
                                                    "controls": not options.no_controls}, measured)
    print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
