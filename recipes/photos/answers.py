"""The 23 photographs as a bundle names them, and whether it is right.

    python -m recipes.photos.answers --model BUNDLE [--shots 4] [--json]

Each photograph is asked for a caption in the model's form, after ``--shots`` training pictures with their names. An
answer is right where its noun phrase is one of the photograph's accepted names (`photographs.py`, `judging.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import flamingo_rt
from flamingo_rt import Image, Model
from flamingo_rt.errors import FlamingoError
from flamingo_rt.printable import printable
from flamingo_rt.processing.tasks import caption_shot
from recipes.photos.judging import is_right, wilson
from recipes.photos.photographs import Photograph, photographs
from recipes.photos.pictures import PICTURES
from recipes.photos.tasks import concepts_in

MAX_NEW_TOKENS = 12
MOST_SHOTS = 64
SHOWN_NAMES = 4  # accepted names of each row of the table


@dataclass(frozen=True)
class Answer:
    """A model's answer about a photograph."""

    photograph: Photograph
    text: str
    right: bool


def answers(model: Model, asked: Sequence[Photograph], shots: Sequence[tuple[Path, str]] = ()) -> list[Answer]:
    """The model's greedy answers, in order. ``shots`` are pictures with their names, read once.

    Raises `DataError` for a picture that cannot be read, `UsageError` for more shots than the model takes.
    """
    parts = [part for file, name in shots for part in caption_shot(model.config, Image(file), name)]
    prefix = model.prompt(parts) if parts else None
    found = []
    for each in asked:
        pieces = model.generate(model.caption_prompt(Image(each.file)), prefix=prefix, max_new_tokens=MAX_NEW_TOKENS)
        text = "".join(pieces).strip()
        found.append(Answer(each, text, is_right(text, each.accepted)))
    return found


def training_shots(pictures: Path, count: int, seed: int) -> list[tuple[Path, str]]:
    """``count`` training concepts at random, each with the whole of its first picture. Raises `DataError` where there
    are no pictures."""
    if not count:
        return []
    concepts = concepts_in(pictures, "train")
    drawn = np.random.default_rng(seed).permutation(len(concepts))[:count]
    return [(pictures / concepts[index].views[0][0], concepts[index].name) for index in drawn]


def best_constant(asked: Sequence[Photograph]) -> tuple[str, int]:
    """The one name that is right about most photographs, and about how many: what an answer without looking gets."""
    counts = Counter(name for each in asked for name in each.accepted)
    name = max(counts, key=lambda name: (counts[name], name))
    return name, counts[name]


def table(rows: Sequence[Answer]) -> str:
    """File, answer, some accepted names, and right or wrong as aligned lines, with the total at the end."""
    lines = [("photograph", "answer", "accepted", "")]
    for row in rows:
        names = row.photograph.accepted
        more = ", …" if len(names) > SHOWN_NAMES else ""
        lines.append((row.photograph.file.name, printable(row.text), ", ".join(names[:SHOWN_NAMES]) + more,
                      "right" if row.right else "wrong"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    low, high = wilson(right := sum(row.right for row in rows), len(rows))
    name, constant = best_constant([row.photograph for row in rows])
    return "\n".join([
        *("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines),
        f"{right} of {len(rows)} right, {right / len(rows):.1%} [{low:.1%}, {high:.1%}]; {name!r} each time would get "
        f"{constant}",
    ])


def record(rows: Sequence[Answer], model: str, shots: int, seed: int) -> dict[str, object]:
    """The content of the table, for JSON."""
    right = sum(row.right for row in rows)
    low, high = wilson(right, len(rows))
    name, constant = best_constant([row.photograph for row in rows])
    return {
        "model": model, "shots": shots, "seed": seed, "right": right, "count": len(rows),
        "interval": [round(low, 4), round(high, 4)], "best_constant": {"answer": name, "right": constant},
        "answers": [{"photograph": row.photograph.file.name, "answer": row.text, "right": row.right,
                     "accepted": list(row.photograph.accepted)} for row in rows],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask a bundle and print the table; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="BUNDLE", required=True, help="a bundle, or a checkpoint")
    parser.add_argument("--shots", type=int, default=0, metavar="N", help="training pictures before each; default: 0")
    parser.add_argument("--seed", type=int, default=0, help="of their draw; default: 0")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)
    if not 0 <= options.shots <= MOST_SHOTS or options.seed < 0:
        parser.error(f"--shots is {options.shots}, --seed {options.seed}; give 0 to {MOST_SHOTS} shots, and a "
                     "seed of 0 or more")
    try:
        asked = photographs()
        shots = training_shots(PICTURES, options.shots, options.seed)
        rows = answers(flamingo_rt.load(options.model), asked, shots)
    except FlamingoError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps(record(rows, str(options.model), options.shots, options.seed)))
    else:
        print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
