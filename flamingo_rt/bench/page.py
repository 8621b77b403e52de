"""A report as a file: one picture (.svg), or one page with charts and tables (.html) that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from flamingo_rt.bench import report as tables
from flamingo_rt.bench.results import Report
from flamingo_rt.bench.units import machine_line, model_line, products_rate, scaled, software_line
from flamingo_rt.files import replacing_file

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: anywhere }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin-top: 2rem } p { margin: .2rem 0 }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)); gap: 1.5rem;
  margin-top: 1rem }
figure { margin: 0 } .charts svg { width: 100%; height: auto } .quiet { color: #555 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem }
th, td { padding: .2rem .9rem .2rem 0; text-align: right; border-bottom: 1px solid #e3e3e3; white-space: nowrap }
th:first-child, td:first-child { text-align: left } .wide { overflow-x: auto }
"""


def write_plot(report: Report, path: Path) -> None:
    """Write charts; the file appears whole or not at all. Raises `DataError` when it cannot be written."""
    from flamingo_rt.bench.plot import draw_all, to_svg

    content = html_page(report) if path.suffix.lower() == ".html" else to_svg(draw_all(report))
    with replacing_file(path) as beside:
        beside.write_text(content, encoding="utf-8")


def html_page(report: Report) -> str:
    """The whole page."""
    from flamingo_rt.bench.plot import CHARTS, draw_one, to_svg

    charts = "\n".join(f"<figure>{_inline(to_svg(draw_one(report, name)), name)}</figure>" for name in CHARTS)
    rates, memory = report.rates, report.memory
    facts = [
        machine_line(report), software_line(report), f"{report.started} to {report.finished}",
        f"memory {scaled(rates.bandwidth, 'B/s')}: {rates.bandwidth_by}; "
        f"products {products_rate(rates)}: {rates.flops_by}; best of {len(rates.bandwidths)}",
        *([f"{scaled(memory.peak, 'B')} of memory at the peak"] if memory.peak is not None else []),
        *([f"bundle {report.model.identity}"] if report.model.identity else []),
    ]
    sections = [
        _table("The least a stage must do, and the least time that takes", tables.THEORY, tables.theory_lines(report)),
        _table("Stages of a query with one picture", tables.STAGES, tables.stage_lines(report)),
        _table("Decode, steps of one token for each row", tables.DECODE, tables.decode_lines(report)),
        _table("First token, by the number of shots", tables.SHOTS, tables.shots_lines(report)),
    ]
    title = escape(model_line(report))
    return "\n".join([
        "<!doctype html>", '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{STYLE}</style></head><body>", f"<h1>{title}</h1>",
        *(f'<p class="quiet">{escape(fact)}</p>' for fact in facts),
        f'<div class="charts">{charts}</div>', *sections,
        *(f"<p>{escape(note)}</p>" for note in report.notes), "</body></html>", "",
    ])


def _inline(svg: str, name: str) -> str:
    """The element alone, its ids apart from those of the other charts on the page."""
    return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", svg[svg.index("<svg") :])


def _table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(line, "td") for line in lines)
    return f'<h2>{escape(title)}</h2><div class="wide"><table>{row(header, "th")}{body}</table></div>'
