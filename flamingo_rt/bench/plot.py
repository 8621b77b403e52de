"""The charts: latency against shots, stages beside their ceilings, and the roofline. The one file that draws.

A roofline (Williams et al., 2009) shows the rate of products that a stage attained against the products it has for each
byte: the sloped roof is memory bandwidth, the flat one the rate of matrix products.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from flamingo_rt.bench.results import Against, Report
from flamingo_rt.bench.statistics import Spread
from flamingo_rt.bench.units import decode_name, machine_line, milliseconds, model_line, scaled, stage_name

COLD, COMPILED, CEILING, INK = "#c8553d", "#1b7f8c", "#3a3a3a", "#222222"
PALETTE = ("#1b7f8c", "#c8553d", "#7b5ea7", "#d19a1c", "#4c9a52", "#5975a4", "#a0567f", "#857a6f")
STYLE = {
    "font.size": 10, "axes.titlesize": 11.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888", "axes.labelcolor": INK,
    "text.color": INK, "xtick.color": INK, "ytick.color": INK, "legend.frameon": False, "axes.axisbelow": True,
    "grid.color": "#e3e3e3", "grid.linewidth": 0.8,
}
Chart = Callable[[Axes, Report], None]


def draw_all(report: Report) -> Figure:
    """The charts beside each other, under the model and the machine."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(21.0, 6.2), layout="constrained")
        figure.suptitle(model_line(report), x=0.008, ha="left", fontsize=15, fontweight="bold")
        axes = figure.subplots(1, 3, width_ratios=(1.0, 1.0, 0.95))
        for chart, target in zip(CHARTS.values(), axes, strict=True):
            chart(target, report)
        figure.supxlabel(
            f"{machine_line(report)}     {report.started[:10]}     medians of {report.options['runs']} runs; lines and "
            "bands: quartiles", x=0.008, ha="left", fontsize=9.5, color="#666666",
        )
    return figure


def draw_one(report: Report, name: str) -> Figure:
    """One of `CHARTS` by itself."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 5.4), layout="constrained")
        CHARTS[name](figure.subplots(), report)
    return figure


def to_svg(figure: Figure) -> str:
    """The figure as SVG, letters as outlines: it looks the same everywhere, and the same each time."""
    file = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "flamingo-rt", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def latency_chart(axes: Axes, report: Report) -> None:
    """Time to the first token against shots, cold and compiled."""
    results = sorted(report.shots, key=lambda result: result.shots)
    cold = [(result.shots, result.cold) for result in results]
    compiled = [(result.shots, result.compiled or result.cold) for result in results]  # none to compile: the same
    _line(axes, cold, COLD, "cold: every picture encoded, the whole prompt read", "o")
    _line(axes, compiled, COMPILED, "compiled: shots read once before, the query alone is timed", "s")
    for points, color in ((cold, COLD), (compiled, COMPILED)):
        if points:
            shots, spread = points[-1]
            axes.annotate(
                milliseconds(spread.median), (shots, spread.median), (0, 8), textcoords="offset points", color=color,
                ha="right" if shots else "left", va="bottom", fontweight="bold",
            )
    highest = max(spread.upper for _, spread in cold)
    axes.set(ylim=(0, highest * 1.35), xticks=sorted({shots for shots, _ in cold}))
    axes.set_xlabel("shots before the query (a picture and its text each)")
    axes.set_ylabel("time to the first token, ms")
    ratio = report.compiled_ratio
    axes.set_title("Time to first token" + (f": compiled, {cold[-1][0]} shots cost {ratio:.2f}× none" if ratio else ""))
    axes.grid(axis="y")
    axes.legend(loc="upper left")


def stage_chart(axes: Axes, report: Report) -> None:
    """Milliseconds of every stage, and the least they could be."""
    rows: list[tuple[str, Spread, Against | None]] = [
        (stage_name(stage), stage.milliseconds, stage.against) for stage in report.stages
    ]
    rows += [(f"{decode_name(result)}, a step", result.milliseconds, result.against) for result in report.decode]
    places = range(len(rows))
    least = min([row[1].least for row in rows] + [row[2].ceiling for row in rows if row[2] is not None])
    most = max(row[1].median for row in rows)
    left = least / 2
    axes.barh(places, [spread.median - left for _, spread, _ in rows], left=left, color="#9cc9cf", height=0.62,
              label="median")
    for place, (_, spread, against) in zip(places, rows, strict=True):
        axes.plot([spread.lower, spread.upper], [place, place], color=COMPILED, linewidth=1.6)
        if against is not None:
            axes.plot([against.ceiling] * 2, [place - 0.31, place + 0.31], color=CEILING, linewidth=2.4,
                      label="least time, at the measured rates" if place == 1 else None)
        reached = f"  ({against.reached:.0%})" if against is not None else ""
        end = max(spread.upper, against.ceiling if against is not None else 0.0)
        axes.annotate(milliseconds(spread.median) + reached, (end, place), (6, 0), textcoords="offset points",
                      va="center", fontsize=9)
    axes.set_xscale("log")
    axes.set(xlim=(left, most * (most / left) ** 0.42), yticks=list(places), yticklabels=[name for name, _, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -1.55)  # from the top; room for the legend
    _plain_numbers(axes)
    axes.set_xlabel("ms, on a logarithmic scale")
    axes.set_title("Stages, and how much of the ceiling they reach")
    axes.grid(axis="x")
    axes.legend(loc="upper right", ncols=2, fontsize=9)


def roofline_chart(axes: Axes, report: Report) -> None:
    """Rate of products attained against products for each byte, under the two roofs."""
    rates = report.rates
    points = [(stage_name(stage), stage.against) for stage in report.stages if stage.against is not None]
    points += [(decode_name(result), result.against) for result in report.decode]
    most = max(against.intensity for _, against in points)
    top = rates.flops if rates.flops is not None else most * rates.bandwidth  # memory's roof alone, up to the points
    ridge = top / rates.bandwidth
    low = min([ridge, *(against.intensity for _, against in points)]) / 2.5
    high = max(ridge, most) * 2.5
    axes.plot([low, ridge], [low * rates.bandwidth, top], color=CEILING, linewidth=2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    bottom = min(against.flop_rate for _, against in points) / 3
    axes.set(xlim=(low, high), ylim=(bottom, top * 3.2))
    if rates.flops is not None:
        axes.plot([ridge, high], [top, top], color=CEILING, linewidth=2)
        axes.annotate(f"products {scaled(rates.flops, 'FLOP/s')}", (high, top), (-4, 5), ha="right",
                      textcoords="offset points", color=CEILING)
    axes.annotate(f"memory {scaled(rates.bandwidth, 'B/s')}", (low, top), (6, 5), ha="left",
                  textcoords="offset points", color=CEILING)
    for index, (name, against) in enumerate(points):
        color = PALETTE[index % len(PALETTE)]
        axes.plot(against.intensity, against.flop_rate, "o", markersize=12, color=color, markeredgecolor="white",
                  label=f"{index + 1}  {name}: {against.reached:.0%}", linestyle="none")
        axes.annotate(str(index + 1), (against.intensity, against.flop_rate), ha="center", va="center_baseline",
                      color="white", fontsize=8, fontweight="bold")
    _plain_numbers(axes)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: scaled(value, "FLOP/s")))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("work for each byte that must move, FLOP/byte")
    axes.set_ylabel("attained")
    axes.set_title("Roofline: stages under what the machine can do")
    axes.grid()
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=9, handletextpad=0.1, labelspacing=0.5,
                markerscale=0.6, title="of its ceiling", alignment="left")


def _line(axes: Axes, points: Sequence[tuple[int, Spread]], color: str, label: str, marker: str) -> None:
    shots = [count for count, _ in points]
    axes.fill_between(shots, [s.lower for _, s in points], [s.upper for _, s in points], color=color, alpha=0.18,
                      linewidth=0)
    axes.plot(shots, [spread.median for _, spread in points], color=color, marker=marker, linewidth=2, label=label)


def _plain_numbers(axes: Axes) -> None:
    """1000 instead of 10³, and no text between the powers."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


CHARTS: dict[str, Chart] = {"latency": latency_chart, "stages": stage_chart, "roofline": roofline_chart}
