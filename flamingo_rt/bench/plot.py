"""The charts: latency against shots, stages beside their ceilings, and the roofline. The one file that draws.

A roofline (Williams et al., 2009) shows the rate of products that a stage attained against the products it has for each
byte: the sloped roof is memory bandwidth, the flat one the rate of matrix products.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from flamingo_rt.bench.results import Against, Report
from flamingo_rt.bench.statistics import Spread
from flamingo_rt.bench.units import PREFIXES, decode_name, machine_line, milliseconds, model_line, scaled, stage_name

COLD, COMPILED, CEILING, GAP, INK = "#c8553d", "#1b7f8c", "#3a3a3a", "#b9c4c6", "#222222"
# The roofline's points: a color for each kind of stage, which red-green blindness does not mix up, and a shade for each
# of its members, dark to light. Numbers in the points say which is which.
SHADES = {
    "vision": ("#8a3f72", "#8a3f72"), "resampler": ("#00705a", "#00705a"), "prefill": ("#0b3c6f", "#7db6e3"),
    "decode": ("#8c3b00", "#f6b26b"),
}
TITLE_LENGTH = 150  # characters that fit beside each other
STYLE: dict[Any, Any] = {  # of matplotlib
    "font.size": 10, "axes.titlesize": 11.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888", "axes.labelcolor": INK,
    "text.color": INK, "xtick.color": INK, "ytick.color": INK, "legend.frameon": False, "axes.axisbelow": True,
    "grid.color": "#e3e3e3", "grid.linewidth": 0.8,
    "text.parse_math": False,  # a dollar sign is one
}
Chart = Callable[[Axes, Report], None]


def draw_all(report: Report) -> Figure:
    """The charts beside each other, under the model and the machine."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(21.0, 6.2), layout="constrained")
        figure.suptitle(drawable(model_line(report), TITLE_LENGTH), x=0.008, ha="left", fontsize=15, fontweight="bold")
        parts = figure.subfigures(1, len(CHARTS), squeeze=False)[0]
        for chart, part in zip(CHARTS.values(), parts, strict=True):
            chart(part.subplots(), report)
        facts = (drawable(machine_line(report), TITLE_LENGTH), report.started[:10],
                 f"medians of {report.options['runs']} runs; lines and bands: quartiles")
        figure.supxlabel("     ".join(facts), x=0.008, ha="left", fontsize=9.5, color="#555555")
    return figure


def draw_one(report: Report, name: str) -> Figure:
    """One of `CHARTS` by itself, as large as its letters can be read on half a screen."""
    rows = 0 if name == "latency" else len(report.stages) + len(report.decode)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.6, 4.4 + 0.14 * max(rows - 6, 0)), layout="constrained")
        CHARTS[name](figure.subplots(), report)
    return figure


def to_svg(figure: Figure) -> str:
    """The figure as SVG, letters as outlines: it looks the same everywhere, and the same each time."""
    file = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "flamingo-rt", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def drawable(text: str, length: int) -> str:
    """``text`` as the font can show it: up to ``length`` characters, and those it has no glyph for as their codes."""
    glyphs = get_font(findfont(FontProperties())).get_charmap()
    shown = "".join(
        letter if ord(letter) in glyphs else letter.encode("unicode_escape").decode("ascii") for letter in text
    )
    return shown if len(shown) <= length else f"{shown[: length - 1]}…"


def latency_chart(axes: Axes, report: Report) -> None:
    """Time to the first token against shots, cold and compiled."""
    results = sorted(report.shots, key=lambda result: result.shots)
    cold = [(result.shots, result.cold) for result in results]
    compiled = [(result.shots, result.compiled or result.cold) for result in results]  # none to compile: the same
    _line(axes, cold, COLD, "cold: every picture encoded, the whole prompt read", "o")
    _line(axes, compiled, COMPILED, "compiled: shots read once before, the query alone is timed", "s")
    highest = max(spread.upper for _, spread in cold)
    if cold:
        (shots, slow), (_, fast) = cold[-1], compiled[-1]
        above = fast.median < slow.median - 0.08 * highest  # else its label is the other's neighbour
        for spread, color, over in ((slow, COLD, True), (fast, COMPILED, above)):
            axes.annotate(
                milliseconds(spread.median), (shots, spread.median), (0, 8 if over else -8), color=color,
                textcoords="offset points", ha="right" if shots else "left", va="bottom" if over else "top",
                fontweight="bold",
            )
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
    rows += [(decode_name(result), result.milliseconds, result.against) for result in report.decode]
    places = range(len(rows))
    bounds = [(place, row[2].ceiling) for place, row in zip(places, rows, strict=True) if row[2] is not None]
    least = min([row[1].least for row in rows] + [ceiling for _, ceiling in bounds])
    most = max(row[1].median for row in rows)
    left = least / 1.6
    axes.hlines(places, [row[1].lower for row in rows], [row[1].upper for row in rows], color=COMPILED, linewidth=1.8)
    axes.plot([row[1].median for row in rows], places, "o", color=COMPILED, markersize=8, label="median, quartiles",
              markeredgecolor="white")
    if bounds:
        axes.hlines([place for place, _ in bounds], [ceiling for _, ceiling in bounds],
                    [rows[place][1].median for place, _ in bounds], color=GAP, linewidth=1.2, zorder=0.5)
        axes.plot([ceiling for _, ceiling in bounds], [place for place, _ in bounds], "|", color=CEILING,
                  markersize=15, markeredgewidth=2.4, label="least time, at the measured rates")
    for place, (_, spread, against) in zip(places, rows, strict=True):
        reached = f"  ({against.reached:.0%})" if against is not None else ""
        end = max(spread.upper, against.ceiling if against is not None else 0.0)
        axes.annotate(milliseconds(spread.median) + reached, (end, place), (8, 0), textcoords="offset points",
                      va="center", fontsize=9)
    axes.set_xscale("log")
    axes.set(xlim=(left, most * (most / left) ** 0.5), yticks=list(places), yticklabels=[name for name, _, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)  # from the top
    _plain_numbers(axes.xaxis, left, most)
    axes.set_xlabel("ms (decode: a step), on a logarithmic scale")
    axes.set_title("Stages, and how near their ceiling")
    axes.grid(axis="x")
    axes.figure.legend(loc="outside lower right", ncols=2, fontsize=9, handletextpad=0.3)


def roofline_chart(axes: Axes, report: Report) -> None:
    """Rate of products attained against products for each byte, under the two roofs."""
    rates = report.rates
    points: list[tuple[str, str, Against]] = [
        (stage.name, stage_name(stage), stage.against) for stage in report.stages if stage.against is not None
    ]
    points += [("decode", decode_name(result), result.against) for result in report.decode]
    most = max(against.intensity for *_, against in points)
    top = rates.flops if rates.flops is not None else most * rates.bandwidth  # memory's roof alone, up to the points
    ridge = top / rates.bandwidth
    low = min([ridge, *(against.intensity for *_, against in points)]) / 2.5
    high = max(ridge, most) * 2.5
    axes.plot([low, ridge], [low * rates.bandwidth, top], color=CEILING, linewidth=2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    bottom = min(against.flop_rate for *_, against in points) / 3
    axes.set(xlim=(low, high), ylim=(bottom, top * 3.2))
    if rates.flops is not None:
        axes.plot([ridge, high], [top, top], color=CEILING, linewidth=2)
        axes.annotate(f"products {scaled(rates.flops, 'FLOP/s')}", (high, top), (-4, 5), ha="right",
                      textcoords="offset points", color=CEILING)
    axes.annotate(f"memory {scaled(rates.bandwidth, 'B/s')}", (low, top), (6, 5), ha="left",
                  textcoords="offset points", color=CEILING)
    for number, (color, (_, name, against)) in enumerate(zip(_shades(points), points, strict=True), start=1):
        axes.plot(against.intensity, against.flop_rate, "o", markersize=12, color=color, markeredgecolor="white",
                  label=f"{number}  {name}: {against.reached:.0%}", linestyle="none")
        axes.annotate(str(number), (against.intensity, against.flop_rate), ha="center", va="center_baseline",
                      color=_readable_on(color), fontsize=8, fontweight="bold")
    _plain_numbers(axes.xaxis, low, high)
    _plain_numbers(axes.yaxis, bottom, top)
    axes.set_xlabel("work for each byte that must move, FLOP/byte")
    axes.set_ylabel("attained, FLOP/s")
    axes.set_title("Roofline: stages under what the machine can do")
    axes.grid()
    axes.figure.legend(loc="outside lower left", ncols=2, fontsize=9, handletextpad=0.1, labelspacing=0.4,
                       markerscale=0.7, title="of its ceiling", alignment="left")


def _shades(points: Sequence[tuple[str, str, Against]]) -> list[tuple[float, ...]]:
    """A color for each point, given with the kind of its stage: no two are alike."""
    found = []
    for kind, members in groupby(points, key=lambda point: point[0]):
        (dark, light), count = map(to_rgb, SHADES[kind]), len(list(members))
        for index in range(count):
            share = index / max(count - 1, 1)
            found.append(tuple(a + (b - a) * share for a, b in zip(dark, light, strict=True)))
    return found


def _readable_on(color: tuple[float, ...]) -> str:
    """White, or ink on light colors (relative luminance as WCAG 2 defines it)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color]
    luminance = sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "white" if luminance < 0.21 else INK


def _line(axes: Axes, points: Sequence[tuple[int, Spread]], color: str, label: str, marker: str) -> None:
    shots = [count for count, _ in points]
    axes.fill_between(shots, [s.lower for _, s in points], [s.upper for _, s in points], color=color, alpha=0.18,
                      linewidth=0)
    axes.plot(shots, [spread.median for _, spread in points], color=color, marker=marker, linewidth=2, label=label)


def _plain_numbers(axis: Axis, low: float, high: float) -> None:
    """1 k instead of 10³; between the powers of ten only where there are few."""
    axis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 60 else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float) -> str:
    factor, prefix = next((each for each in PREFIXES if value >= each[0] * 0.9995 and value >= 1e4), (1.0, ""))
    return f"{value / factor:g} {prefix}".strip()


CHARTS: dict[str, Chart] = {"latency": latency_chart, "stages": stage_chart, "roofline": roofline_chart}
