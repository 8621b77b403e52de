"""Losses, gates and accuracy of training runs as one picture, from their logs.

    python -m benchmarks.training_chart runs/small/vision runs/small/language runs/small/flamingo \\
        --evaluation runs/small/evaluation.json --out chart.png

``--evaluation`` is what ``flamingo-rt evaluate scenes --json`` printed. Needs matplotlib: ``pip install
'flamingo-rt[bench]'``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flamingo_rt.files import replacing_file
from flamingo_rt.training.run_log import log_path, read_log

SMOOTHING = 0.9  # of the line in front; every step's value is the pale one behind it
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#000000")
STYLE: dict[Any, Any] = {
    "font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "axes.grid": True, "grid.color": "#e3e3e3",
    "axes.axisbelow": True, "text.parse_math": False,
}
# The numbers that are drawn: of the first of these kinds that the log has, else all.
TITLES = {"gate.": "gates, tanh of them (dashed: feed-forward)", "evaluation.": "accuracy on held-out pictures"}
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


def draw(runs: Mapping[str, Lines], evaluation: Mapping[str, Any] | None = None) -> Figure:
    """A column for each run: losses above; gates, accuracy or other numbers below. One more for ``evaluation``."""
    columns = len(runs) + (evaluation is not None)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4 * columns, 6.4), layout="constrained")
        grid = figure.add_gridspec(2, columns)
        for column, (name, lines) in enumerate(runs.items()):
            losses = figure.add_subplot(grid[0, column])
            _draw_losses(losses, name, lines)
            _draw_scalars(figure.add_subplot(grid[1, column], sharex=losses), lines)
        if evaluation is not None:
            _draw_evaluation(figure.add_subplot(grid[:, -1]), evaluation)
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
    kind = next((kind for kind in TITLES if any(name.startswith(kind) for name in found)), "")
    shown = {name.removeprefix(kind): numbers for name, numbers in found.items() if name.startswith(kind)}
    for number, (label, (steps, values)) in enumerate(shown.items()):
        gates = kind == "gate."
        style = "--" if gates and label.endswith(".ff") else "-"
        color = COLORS[(number // 2 if gates else number) % len(COLORS)]
        axes.plot(steps, values, style, color=color, label=label, marker="." if len(steps) < 50 else "")
    axes.set_title(TITLES.get(kind, "other numbers"))
    axes.set_xlabel("step")
    if shown:
        axes.legend(fontsize=8, ncols=2)


def _draw_evaluation(axes: Axes, evaluation: Mapping[str, Any]) -> None:
    rows = [(f"{group[:-1]}: {name}", *counts) for group in ("captions", "answers")
            for name, counts in evaluation[group].items()]
    shares = [right / count if count else 0.0 for _, right, count in rows]
    bars = axes.barh([name for name, _, _ in rows], shares, color=COLORS[0])
    axes.bar_label(bars, [f"{right} of {count}" for _, right, count in rows], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.grid(visible=False, axis="y")
    axes.set_title(f"right about {evaluation['scenes']} held-out scenes")


def main() -> None:
    """Draw the logs of the runs that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="the folders that were trained")
    parser.add_argument("--evaluation", type=Path, help="JSON of flamingo-rt evaluate scenes")
    parser.add_argument("--out", type=Path, required=True, help="PNG or SVG to write")
    options = parser.parse_args()
    alike = len({run.name for run in options.runs}) < len(options.runs)
    runs = {str(run) if alike else run.name: list(read_log(log_path(run))) for run in options.runs}
    evaluation = None if options.evaluation is None else json.loads(options.evaluation.read_text(encoding="utf-8"))
    with replacing_file(options.out) as beside:
        draw(runs, evaluation).savefig(beside, dpi=110)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
