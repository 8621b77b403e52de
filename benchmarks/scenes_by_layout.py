"""Accuracy of bundles on drawn scenes of each layout: square pictures, from 1:2 to 2:1, and one shape of any size.

    python -m benchmarks.scenes_by_layout [--model NAME=BUNDLE …] [--scenes 300]

Each layout is a run of ``flamingo-rt evaluate scenes``. Without ``--model`` it is the model in the package. Prints a
table, and writes a dated result to ``benchmarks/results``. Needs the extra ``train``, which draws the pictures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.dated_result import RESULTS, write_result
from benchmarks.evaluated_bundles import bundles_asked, evaluated, named_bundle

LAYOUTS = ("square", "wide", "single")
Counts = Mapping[str, tuple[int, int]]  # right and all, by kind


def measure(bundle: str | None, scenes: int) -> dict[str, dict[str, Any]]:
    """The record of each layout."""
    return {
        layout: evaluated(bundle, "scenes", "--layout", layout, "--scenes", str(scenes)) for layout in LAYOUTS
    }


def told(kinds: Counts) -> str:
    """The sum over all kinds, such as ``296 of 300 (98.7%)``."""
    right, count = (sum(counts) for counts in zip(*kinds.values(), strict=True))
    return f"{right:,} of {count:,} ({right / count:.1%})"


def print_records(records: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a line for each layout, and the kinds of the square ones."""
    for layout, record in records.items():
        print(f"  {layout:6} captions {told(record['captions'])}, answers {told(record['answers'])}", flush=True)
    for part in ("captions", "answers"):
        kinds = records["square"][part].items()
        print(f"  square, {part}: " + ", ".join(f"{kind} {right} of {count}" for kind, (right, count) in kinds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", type=named_bundle, default=[], metavar="NAME=BUNDLE",
                        help="may be given again")
    parser.add_argument("--scenes", type=int, default=300, help="pictures of each layout; default %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_args()
    measured = {}
    for name, bundle in bundles_asked(options.model).items():
        print(f"== {name}", flush=True)
        measured[name] = measure(bundle, options.scenes)
        print_records(measured[name])
    path = write_result(options.results, "scenes-by-layout", {"scenes": options.scenes}, measured)
    print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
