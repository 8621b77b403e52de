"""All that the recipe measures of its bundles, as one dated record.

    python -m recipes.photos.measure --model fp32=runs/photos/fp32 [--model int4=runs/photos/bundle …] [--parts words,…]
        [--words stamps-words,…] [--no-controls] [--seeds N] [--orders N]

- ``words``: ``evaluate task`` on the three tasks whose words only the shots explain, after 0, 1, 2 and 4 shots a class;
  the controls (pictures shuffled among the shots, grey) at 4.
- ``captions``: the held-out stamps' names, after 0 and 4 shots of trained stamps, drawn for each.
- ``photographs``: the 23 photographs, after 0 and 4 shots; beside them the best that one answer for all would get.

Beside them stand the nearest neighbours of the encoder's features on the same queries and shots (`nearest.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.dated_result import RESULTS, write_result
from benchmarks.evaluated_bundles import evaluated, named_bundle
from benchmarks.processes import module
from recipes.photos.nearest import WORD_TASKS
from recipes.photos.tasks import TASKS

WORDS = ("--shots", "0,5,10,20", "--select", "balanced", "--plain-zero")
CONTROLS = ("--shots", "20", "--select", "balanced", "--controls", "shuffled,blank")
CAPTIONS = ("stamps-captions", "stamps-exact")
CAPTION_OPTIONS = ("--shots", "0,4", "--plain-zero", "--redraw")
PHOTOGRAPH_SHOTS = (0, 4)
PARTS = ("words", "captions", "photographs")


def measured(
    bundle: str, parts: Sequence[str], words: Sequence[str], seeds: int, orders: int, controls: bool, work: Path
) -> dict[str, Any]:
    """The records of a bundle, by task; each is printed as it comes."""
    found: dict[str, Any] = {}
    draws = ["--seeds", str(seeds)]

    def task(name: str, called: str, *options: str) -> None:
        found[called] = evaluated(bundle, "task", str(TASKS / f"{name}.toml"), "--out", str(work / called), *options)
        print_scores(called, found[called])

    if "words" in parts:
        for name in words:
            task(name, name, *WORDS, *draws, "--orders", str(orders))
            if controls:
                task(name, f"{name}, controls", *CONTROLS, *draws, "--orders", str(orders))
    if "captions" in parts:
        for name in CAPTIONS:
            task(name, name, *CAPTION_OPTIONS, *draws)
    if "photographs" in parts:
        for shots, seed in [(count, seed) for count in PHOTOGRAPH_SHOTS for seed in range(seeds if count else 1)]:
            said = module("recipes.photos.answers", "--model", bundle, "--shots", str(shots), "--seed", str(seed),
                          "--json")
            called = f"photographs, {shots} shots" + (f", draw {seed}" if shots else "")
            found[called] = answers = json.loads(said.strip().splitlines()[-1])
            print(f"{called}: {answers['right']} of {answers['count']} {answers['interval']}, "
                  f"{answers['best_constant']['right']} by one answer for all", flush=True)
    return found


def print_scores(name: str, record: dict[str, Any]) -> None:
    """Print a line for each number of shots and control of a task's record; CIDEr is in its own unit, all else in %."""
    unit = 1 if record["metric"] == "cider" else 100
    for score in record["scores"]:
        mean, low, high = (unit * score[key] for key in ("mean", "low", "high"))
        print(f"{name}, {score['shots']} shots, {score['control']}: {mean:.1f} ({low:.1f} to {high:.1f})", flush=True)


def main() -> None:
    """Measure the bundles that are named, print the figures, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", type=named_bundle, required=True, metavar="NAME=BUNDLE",
                        help="may be given again")
    parser.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument("--words", default=",".join(WORD_TASKS), help="tasks of that part; default: %(default)s")
    parser.add_argument("--seeds", type=int, default=1, help="draws of the shots; default %(default)s")
    parser.add_argument("--orders", type=int, default=2, help="orders of the shots; default %(default)s")
    parser.add_argument("--no-controls", action="store_true", help="the shots as they are alone")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_args()
    parts, words = options.parts.split(","), options.words.split(",")
    for option, given, known in (("parts", parts, PARTS), ("words", words, WORD_TASKS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f"--{option} {unknown[0]}: known are {', '.join(known)}")
    results: dict[str, Any] = {}
    if "words" in parts:
        said = module("recipes.photos.nearest", "--task", *words, "--seeds", str(options.seeds), "--json")
        results["nearest neighbours"] = json.loads(said.strip().splitlines()[-1])
    with tempfile.TemporaryDirectory() as folder:
        for name, bundle in options.model:
            print(f"== {name}", flush=True)
            results[name] = measured(bundle, parts, words, options.seeds, options.orders, not options.no_controls,
                                     Path(folder) / name)
    subject = "-".join(["photos", *(parts if len(parts) < len(PARTS) else ()), *(name for name, _ in options.model)])
    path = write_result(options.results, subject, {"seeds": options.seeds, "orders": options.orders}, results)
    print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
