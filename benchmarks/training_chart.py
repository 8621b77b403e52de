"""Losses, gates and throughput of training runs as one picture, from their logs.

    python -m benchmarks.training_chart runs/small/vision runs/small/language runs/small/flamingo --out chart.png

Needs matplotlib: ``pip install 'flamingo-rt[bench]'``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flamingo_rt.files import replacing_file
from flamingo_rt.training.run_log import log_path, read_log

SMOOTHING = 0.96  # of the line in front; every step's value is the pale one behind it
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#000000")
STYLE: dict[Any, Any] = {
    "font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "axes.grid": True, "grid.color": "#e3e3e3",
    "axes.axisbelow": True, "text.parse_math": False,
}
Lines = list[dict[str, Any]]


def series(lines: Lines, group: str) -> dict[str, tuple[list[int], list[float]]]:
    """Every number of a group of the log's entries (``loss``, ``scalars``) with its steps."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for line in lines:
        for name, value in line[group].items():
            if value is not None:
                steps, values = found.setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(value)
    return found


def smoothed(values: list[float]) -> Iterator[float]:
    """The exponential mean of the values up to each."""
    mean, weight = 0.0, 0.0
    for value in values:
        mean, weight = SMOOTHING * mean + (1 - SMOOTHING) * value, SMOOTHING * weight + 1 - SMOOTHING
        yield mean / weight


def draw(runs: Mapping[str, Lines]) -> Figure:
    """A column for each run: losses above, gates or other numbers below."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(runs), 6.4), layout="constrained")
        axes = figure.subplots(2, len(runs), squeeze=False, sharex="col")
        for column, (name, lines) in enumerate(runs.items()):
            _draw_losses(axes[0, column], name, lines)
            _draw_scalars(axes[1, column], lines)
        return figure


def _draw_losses(axes: Axes, name: str, lines: Lines) -> None:
    for color, (label, (steps, values)) in zip(COLORS, series(lines, "loss").items(), strict=False):
        axes.plot(steps, values, color=color, alpha=0.18, linewidth=0.8)
        axes.plot(steps, list(smoothed(values)), color=color, label=f"{label} {list(smoothed(values))[-1]:.2f}")
    axes.set_title(f"{name}: loss")
    axes.set_ylim(bottom=0)
    axes.legend()


def _draw_scalars(axes: Axes, lines: Lines) -> None:
    found = series(lines, "scalars")
    gates = {name: numbers for name, numbers in found.items() if name.startswith("gate.")}
    shown = gates or found
    for number, (label, (steps, values)) in enumerate(shown.items()):
        kind = "--" if label.endswith(".ff") else "-"
        color = COLORS[(number // 2 if gates else number) % len(COLORS)]
        axes.plot(steps, values, kind, color=color, label=label.removeprefix("gate."))
    axes.set_title("gates, tanh of them (dashed: feed-forward)" if gates else "other numbers")
    axes.set_xlabel("step")
    if shown:
        axes.legend(fontsize=8, ncols=2)


def main() -> None:
    """Draw the logs of the runs that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="the folders that were trained")
    parser.add_argument("--out", type=Path, required=True, help="PNG or SVG to write")
    options = parser.parse_args()
    runs = {run.name: list(read_log(log_path(run))) for run in options.runs}
    with replacing_file(options.out) as beside:
        draw(runs).savefig(beside, dpi=110)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
