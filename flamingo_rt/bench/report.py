"""The report on a terminal: theory first (work, bytes, the least time they take), then what was reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from flamingo_rt.bench.results import Against, Report
from flamingo_rt.bench.statistics import Spread
from flamingo_rt.bench.units import (
    decode_name,
    machine_line,
    milliseconds,
    model_line,
    products_rate,
    scaled,
    software_line,
    stage_name,
)
from flamingo_rt.printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Line = tuple[str, ...]


def print_report(report: Report, console: Console) -> None:
    """Print everything a person wants to see; what is left out is in ``--json``."""
    def say(text: str, indent: int = 0) -> None:
        console.print(" " * indent + printable(text), markup=False, highlight=False, soft_wrap=True)

    for line in (model_line(report), machine_line(report), software_line(report)):
        say(line)
    rates = report.rates
    say("")
    say(f"The machine, measured between the runs, best of {len(rates.bandwidths)}:")
    say(f"memory    {scaled(rates.bandwidth, 'B/s'):>13}   {rates.bandwidth_by}", 2)
    say(f"products  {products_rate(rates):>13}   {rates.flops_by}", 2)
    for title, header, lines in (
        ("Theory: the least a stage must do, and the least time that takes", THEORY, theory_lines(report)),
        (f"Measured: one query with one picture, {report.options['warmup']} to warm up", STAGES, stage_lines(report)),
        (f"Decode: steps of one token for each row, {report.options['tokens']} in a run", DECODE, decode_lines(report)),
        ("First token, by the number of shots before the query", SHOTS, shots_lines(report)),
    ):
        say("")
        console.print(_table(title, header, lines, wide=console.width >= WIDE))
    say("")
    if report.compiled_ratio is not None:
        most = max(result.shots for result in report.shots)
        say(f"With a compiled prompt, {most} shots cost {report.compiled_ratio:.2f} times what none cost.")
    if report.memory.peak is not None:
        say(f"Memory of the process: {scaled(report.memory.peak, 'B')} at its peak, mapped files included.")
    for note in report.notes:
        say(note)


WIDE = 104  # columns of the widest table; on a narrower terminal some are left out
DISPENSABLE = ("quartiles", "fastest", "slowest", "work/byte")
THEORY = ("stage", "work", "moves", "work/byte", "at least", "bound by")
STAGES = ("stage", "median", "quartiles", "fastest", "slowest", "runs", "of the ceiling")
DECODE = ("batch", "context", "median", "quartiles", "tokens/s", "GB/s", "of the ceiling")
SHOTS = ("shots", "tokens", "cold", "quartiles", "compiled", "quartiles", "compiling, once")


def theory_lines(report: Report) -> list[Line]:
    """A line of `THEORY` for every stage that has a ceiling."""
    def line(name: str, against: Against) -> Line:
        return (
            name, scaled(against.flops, "FLOP"), scaled(against.bytes, "B"), f"{against.intensity:.3g}",
            milliseconds(against.ceiling), against.bound,
        )

    stages = [line(stage_name(stage), stage.against) for stage in report.stages if stage.against is not None]
    return stages + [line(decode_name(result), result.against) for result in report.decode]


def stage_lines(report: Report) -> list[Line]:
    """A line of `STAGES` for every stage but decoding."""
    return [
        (
            stage_name(stage), milliseconds(stage.milliseconds.median), _quartiles(stage.milliseconds),
            milliseconds(stage.milliseconds.least), milliseconds(stage.milliseconds.most), str(stage.milliseconds.runs),
            f"{stage.against.reached:.0%}" if stage.against is not None else "",
        )
        for stage in report.stages
    ]


def decode_lines(report: Report) -> list[Line]:
    """A line of `DECODE` for every batch and context."""
    return [
        (
            str(result.batch), str(result.context), milliseconds(result.milliseconds.median),
            _quartiles(result.milliseconds), f"{result.tokens_per_second:,.1f}",
            f"{result.against.bytes / result.milliseconds.median / 1e6:.1f}", f"{result.against.reached:.0%}",
        )
        for result in report.decode
    ]


def shots_lines(report: Report) -> list[Line]:
    """A line of `SHOTS` for every number of shots."""
    return [
        (
            str(result.shots), str(result.prompt_tokens), milliseconds(result.cold.median), _quartiles(result.cold),
            milliseconds(result.compiled.median) if result.compiled is not None else "",
            _quartiles(result.compiled) if result.compiled is not None else "",
            milliseconds(result.compiling) if result.compiling is not None else "",
        )
        for result in report.shots
    ]


def _quartiles(spread: Spread) -> str:
    return f"{milliseconds(spread.lower)} to {milliseconds(spread.upper)}"


def _table(title: str, header: Line, lines: list[Line], wide: bool) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    shown = [index for index, name in enumerate(header) if wide or name not in DISPENSABLE]
    for index in shown:
        justify: Literal["left", "right"] = "left" if index == 0 or header[index] == "bound by" else "right"
        table.add_column(header[index], justify=justify, no_wrap=True)
    for line in lines:
        table.add_row(*(escape(printable(line[index])) for index in shown))
    return table
