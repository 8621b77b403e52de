"""The report of ``flamingo-rt data check``, as lines and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flamingo_rt.printable import printable

if TYPE_CHECKING:
    from flamingo_rt.training.data.checking import DataReport, Problem, Spread

LISTED = 20  # damaged samples and others that are printed
NOUNS = {"pairs": "pictures", "videos": "clips", "pages": "pictures"}
MOST_TEXT = 60  # characters of the most common text


def report_record(report: DataReport) -> dict[str, Any]:
    """The report as one JSON object."""
    visuals, texts = report.visuals, report.texts
    return {
        "kind": report.kind,
        "samples": report.samples,
        "damaged": [problem._asdict() for problem in report.damaged],
        "damaged_share": report.damaged_share,
        "empty_texts": report.empty_texts,
        "nothing_to_learn": [problem._asdict() for problem in report.nothing_to_learn],
        "visuals": {
            "count": visuals.count, "bytes": visuals.file_bytes, "different": visuals.different,
            "sizes": dict(zip(("smallest", "median", "largest"), map(list, visuals.sizes), strict=False)),
            "in_a_sample": _spread_record(visuals.in_a_sample),
        },
        "texts": {
            "characters": _spread_record(texts.characters),
            "tokens": _spread_record(texts.tokens) if texts.tokens is not None else None,
            "limit": texts.limit, "too_long": texts.too_long, "different": texts.different,
            "commonest": texts.commonest, "commonest_count": texts.commonest_count,
        },
        "repeated": report.repeated,
        "repeats": [list(names) for names in report.repeats],
        "classes": dict(report.classes),
    }


def report_lines(report: DataReport) -> Iterator[str]:
    """The report as lines for a terminal."""
    usable = report.samples - len(report.damaged) - len(report.nothing_to_learn)
    yield _line("samples", f"{report.samples:,} of {report.kind}")
    yield _line("damaged", f"{len(report.damaged):,} ({report.damaged_share:.1%})"
                           + (f", of which {report.empty_texts:,} have an empty text" if report.empty_texts else ""))
    yield from _problems(report.damaged)
    yield _line("nothing to learn", f"{len(report.nothing_to_learn):,}")
    yield from _problems(report.nothing_to_learn)
    if usable:
        yield from _visual_lines(report)
        yield from _text_lines(report, usable)
        yield _line("repeated samples", f"{report.repeated:,}")
        for names in report.repeats:
            yield f"  {printable(' = '.join(names))}"
    for number, (name, count) in enumerate(report.classes.items()):
        yield _line("classes" if number == 0 else "", f"{count:>7,}  {printable(name)}")


def _visual_lines(report: DataReport) -> Iterator[str]:
    visuals = report.visuals
    if not visuals.count:
        return
    noun = NOUNS.get(report.kind, "pictures")
    smallest, median, largest = (f"{width} x {height}" for width, height in visuals.sizes)
    yield _line(noun, f"{visuals.count:,}, {visuals.file_bytes / 1e6:,.1f} MB; {visuals.different:,} different")
    yield _line("sizes", f"{smallest} to {largest}, median {median} pixels")
    if report.kind == "pages":
        yield _line("pictures of a page", _spread_text(visuals.in_a_sample))


def _text_lines(report: DataReport, usable: int) -> Iterator[str]:
    texts = report.texts
    yield _line("characters", _spread_text(texts.characters))
    if texts.tokens is not None:
        yield _line("tokens", _spread_text(texts.tokens))
        yield _line("too long", f"{texts.too_long:,} with more than {texts.limit:,} tokens")
    yield _line("texts", f"{texts.different:,} different")
    if texts.commonest_count > 1:
        shown = " ".join(texts.commonest.split())
        shown = shown if len(shown) <= MOST_TEXT else f"{shown[:MOST_TEXT]}..."
        yield _line("most common text", f"{texts.commonest_count:,} times ({texts.commonest_count / usable:.1%}): "
                                        f"{printable(shown)}")


def _problems(problems: tuple[Problem, ...]) -> Iterator[str]:
    for problem in problems[:LISTED]:
        yield f"  {printable(problem.name)}: {printable(problem.reason)}"
    if len(problems) > LISTED:
        yield f"  and {len(problems) - LISTED:,} more: --json names all"


def _line(label: str, text: str) -> str:
    return f"{label:<20}{text}"


def _spread_text(spread: Spread) -> str:
    return f"{spread.least:,} to {spread.most:,}, median {spread.median:,}, 95% have at most {spread.most_of_95:,}"


def _spread_record(spread: Spread) -> dict[str, int]:
    return {"min": spread.least, "median": spread.median, "p95": spread.most_of_95, "max": spread.most}
