"""The results as a chart for the README: time per token, time to the first one, and how that grows with shots.

Needs matplotlib, which nothing else here does: ``pip install 'flamingo-rt[bench]'``.
"""

from __future__ import annotations

from math import log2, log10
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.comparison.compared_systems import SYSTEMS
from benchmarks.comparison.comparison_tables import measured
from benchmarks.comparison.result_file import Record, case_of, first_token, per_token
from flamingo_rt.files import replacing_file

# Ours in blue, darker the fewer bits; the others in grey and sand.
SHADES = {"ours-fp32": "#7fb2dc", "ours-int8": "#3d8cc9", "ours-int4": "#0f5c99", "ours-torch": "#a9c4da",
          "peer-fp32": "#5f5f5f", "peer-bf16": "#9a9a9a", "idefics-fp32": "#a8946a", "idefics-bf16": "#d2c4a2"}
TEXT, GRID = "#222222", "#e3e3e3"


def import_pyplot() -> Any:
    """matplotlib, drawing into files; ends the program with what to install without it."""
    try:
        import matplotlib
    except ImportError as error:
        remedy = "pip install 'flamingo-rt[bench]', then --only chart"
        raise SystemExit(f"the chart needs matplotlib ({error}): {remedy}") from error
    matplotlib.use("Agg")
    matplotlib.rcParams |= {
        "font.family": "DejaVu Sans", "font.size": 9, "text.color": TEXT, "axes.labelcolor": TEXT,
        "xtick.color": TEXT, "ytick.color": TEXT, "axes.edgecolor": GRID, "svg.hashsalt": "flamingo-rt",
        "text.parse_math": False,  # a dollar sign is one
    }
    from matplotlib import pyplot

    return pyplot


def draw(results: Record, path: Path) -> None:
    """Write the chart; the ending of ``path`` says in which format."""
    pyplot = import_pyplot()
    systems = [(name, record) for name, record in measured(results) if case_of(record, 0)]
    if not systems:
        raise SystemExit("there is nothing to draw yet: measure a system first, with 0 among the shots")
    figure, axes = pyplot.subplots(1, 3, figsize=(12.5, 0.34 * max(len(systems), 6) + 1.5), layout="constrained",
                                   width_ratios=(1, 1, 1.25))
    labels = [SYSTEMS[name].label for name, _ in systems]
    colours = [SHADES[name] for name, _ in systems]
    each = [per_token(case_of(record, 0)).median for _, record in systems]
    first = [first_token(case_of(record, 0)).median for _, record in systems]
    bars(axes[0], labels, each, colours, "milliseconds per token", "{:.3g}")
    bars(axes[1], [""] * len(labels), [value / 1e3 for value in first], colours,
         "seconds to the first, one picture", "{:.2g}")
    lines(axes[2], systems)
    with replacing_file(path) as beside:
        figure.savefig(beside, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150, facecolor="white")
    pyplot.close(figure)


def bars(axes: Any, labels: list[str], values: list[float], colours: list[str], title: str, form: str) -> None:
    """Horizontal bars from zero, the first on top, each with its value."""
    places = range(len(values))
    axes.barh(places, values, color=colours, height=0.72)
    for place, value in zip(places, values, strict=True):
        axes.text(value, place, " " + form.format(value), va="center", ha="left", fontsize=8.5)
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.16)
    axes.set_xticks([])
    axes.set_title(title, fontsize=9.5, loc="left")
    axes.tick_params(length=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def lines(axes: Any, systems: list[tuple[str, Record]]) -> None:
    """Seconds to the first token against shots; dashed where our runtime had read the shots before."""
    ends = []
    for name, record in systems:
        for part, style in (("cases", "-"), ("compiled", "--")):
            cases = sorted(record.get(part) or (), key=lambda case: case["shots"])
            if part == "compiled" and cases and case_of(record, 0):
                cases = [case_of(record, 0), *cases]  # without shots there is nothing to read before
            if len(cases) < 2:
                continue
            values = [first_token(case).median / 1e3 for case in cases]
            places = [log2(case["shots"] + 1) for case in cases]
            axes.plot(places, values, style, color=SHADES[name], marker="o", markersize=3, linewidth=1.6)
            label = SYSTEMS[name].label + (", shots read before" if part == "compiled" else "")
            ends.append((values[-1], places[-1], label, SHADES[name]))
    axes.set_title("seconds to the first, by number of shots", fontsize=9.5, loc="left")
    axes.tick_params(length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if not ends:
        axes.text(0.5, 0.5, "no shots measured yet", ha="center", va="center", transform=axes.transAxes)
        return
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 60 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter("")
    shots = sorted({case["shots"] for _, record in systems for case in record["cases"]})
    axes.set_xticks([log2(number + 1) for number in shots], [str(number) for number in shots])
    label_ends(axes, ends)


def label_ends(axes: Any, ends: list[tuple[float, int, str, str]]) -> None:
    """Names behind the last points, moved apart where they would overlap."""
    low, high = (log10(limit) for limit in axes.get_ylim())
    places = sorted((log10(value), value, across, label, colour) for value, across, label, colour in ends)
    heights = apart([place[0] for place in places], (high - low) * 0.066)
    furthest = max(across for _, across, _, _ in ends)
    for height, (_, value, across, label, colour) in zip(heights, places, strict=True):
        axes.annotate(
            label, (across, value), (furthest * 1.1, 10**height), fontsize=8, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 3},
        )
    axes.set_xlim(-furthest * 0.04, furthest * 1.02)


def apart(places: list[float], step: float) -> list[float]:
    """Ascending places moved as little as possible so that neighbours are ``step`` apart: neighbours that are too near
    move together, around their mean."""
    groups: list[list[float]] = []  # of places, each less its index times the step: equal ones are then a step apart
    for number, place in enumerate(places):
        groups.append([place - number * step])
        while len(groups) > 1 and fmean(groups[-2]) >= fmean(groups[-1]):
            last = groups.pop()
            groups[-1] += last
    levels = [fmean(group) for group in groups for _ in group]
    return [level + number * step for number, level in enumerate(levels)]
