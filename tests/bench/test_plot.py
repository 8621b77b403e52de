"""Charts: whole, self-contained files. How they look is not tested."""

from __future__ import annotations

import re
import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up_report import RATES, spread
from matplotlib.colors import to_rgb

from flamingo_rt.bench import plot
from flamingo_rt.bench.page import STYLE, html_page, write_plot
from flamingo_rt.bench.plot import CHARTS, draw_all, draw_one, drawable, to_svg
from flamingo_rt.bench.results import Against, DecodeResult, Report
from flamingo_rt.errors import DataError
from flamingo_rt.printable import printable

ELSEWHERE = re.compile(r"""(?:src|href)=["'](?!\#|data:)|url\((?!\#)|@import|<script""")


def test_a_picture_is_svg_that_looks_the_same_each_time(made_up, tmp_path: Path) -> None:
    write_plot(made_up, tmp_path / "a.svg")
    write_plot(made_up, tmp_path / "b.SVG")
    content = (tmp_path / "a.svg").read_text()
    assert content == (tmp_path / "b.SVG").read_text()
    assert ElementTree.fromstring(content).tag.endswith("svg")
    assert not ELSEWHERE.search(content)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.svg", "b.SVG"]


def test_a_page_has_charts_and_tables_and_needs_nothing_else(made_up) -> None:
    page = html_page(made_up)
    assert page.count("<svg ") == len(CHARTS) == 3
    assert page.count("<table>") == 4
    assert not ELSEWHERE.search(page)
    assert "tiny &amp; mighty" in page
    assert "A &lt;fast&gt; CPU" in page
    assert "Something to know." in page
    assert "<?xml" not in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(set(ids)) == len(ids)  # charts of a page do not share ids
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', page)) <= set(ids)


def test_every_chart_has_a_title_and_labels_with_units(made_up) -> None:
    axes = {name: draw_one(made_up, name).axes[0] for name in CHARTS}
    assert all(chart.get_title(loc="left") and chart.get_xlabel() for chart in axes.values())
    assert "ms" in axes["latency"].get_ylabel()
    assert "ms" in axes["stages"].get_xlabel()
    assert "FLOP/byte" in axes["roofline"].get_xlabel()
    assert draw_all(made_up).get_suptitle().startswith("tiny & mighty")


@pytest.mark.parametrize("shots", [slice(0, 1), slice(1, 2)])
def test_a_chart_can_be_drawn_of_one_number_of_shots(made_up, shots: slice) -> None:
    few = replace(made_up, shots=made_up.shots[shots], compiled_ratio=None)
    assert "<svg" in to_svg(draw_all(few))


def test_a_machine_whose_products_were_not_measured_has_one_roof(made_up) -> None:
    without = replace(made_up, rates=replace(made_up.rates, flops=None, flops_by="not measured"))
    roofs = [len([line for line in draw_one(report, "roofline").axes[0].lines if line.get_marker() == "None"])
             for report in (made_up, without)]
    assert roofs == [2, 1]
    assert "not measured" in html_page(without)


def test_a_file_that_cannot_be_written_is_explained(made_up, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*a\.html: .*file is a file, not a folder"):
        write_plot(made_up, tmp_path / "file" / "a.html")


# Names that a manifest may bring: mathematics to matplotlib, markup to browsers, commands to terminals.
NAMES = {
    "mathematics": "$x_$", "broken mathematics": r"$\frac{$ $", "a price": "costs $5 or $6",
    "tags": "<b>&amp;\"'</b>", "a script": "</title></script><script>alert(1)</script>",
    "the end of a comment": "--><img src=x onerror=alert(1)>", "another": "--!><svg onload=alert(1)>",
    "lines": "one\ntwo\r\nthree", "no glyphs": "\U0001f9a9 \u706b\u70c8\u9e1f", "not a character": "\ud800 \ufffe \x00",
    "a terminal's clipboard": "\x1b]52;c;QUJD\x07", "right to left": "\u202egpj.exe", "underscore": "_x",
    "long": "x" * 5000,
}


class Seen(HTMLParser):
    """The tags of a page, their attributes, and the text of one of them."""

    def __init__(self, page: str, of: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text, self._of, self._in = set(), set(), "", of, False
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self._in |= tag == self._of

    def handle_endtag(self, tag: str) -> None:
        self._in &= tag != self._of

    def handle_data(self, data: str) -> None:
        self.text += data if self._in else ""


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_with_markup_or_control_characters_are_drawn_as_text(
    made_up, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plot, "CHARTS", {"stages": plot.stage_chart})  # names stand above the charts: one will do
    plain = Seen(html_page(made_up), "h1")
    named = replace(made_up, model=replace(made_up.model, name=name), machine=replace(made_up.machine, cpu=name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # glyphs that are missing
        figure = draw_all(named)
        content, page = to_svg(figure), html_page(named)
    ElementTree.fromstring(content)
    assert "\n" not in figure.get_suptitle()
    page.encode("utf-8")
    seen = Seen(page, "h1")
    assert seen.tags == plain.tags
    assert seen.attributes == plain.attributes
    assert seen.text.startswith(printable(name) + ", float32")


def test_characters_that_the_font_lacks_are_shown_as_codes() -> None:
    assert drawable("a \U0001f9a9 é", 99) == "a \\U0001f9a9 é"
    assert drawable("a" * 12, 12) == "a" * 12
    assert drawable("a" * 13, 12) == "a" * 11 + "…"


def with_many_points(report: Report) -> Report:
    decode = tuple(
        DecodeResult(batch, context, spread(batch * 0.1), 1.0, Against.of(batch * context, 10**6, batch * 0.1, RATES))
        for batch in (1, 2, 4, 8) for context in (64, 128, 1500)
    )
    return replace(report, decode=decode)


def test_no_two_points_of_the_roofline_look_alike_and_each_number_can_be_read(made_up) -> None:
    axes = draw_one(with_many_points(made_up), "roofline").axes[0]
    colors = [to_rgb(line.get_color()) for line in axes.lines if line.get_marker() == "o"]
    assert len(set(colors)) == len(colors) == 15
    numbers = [text for text in axes.texts if text.get_text().isdigit()]
    assert [text.get_text() for text in numbers] == [str(number) for number in range(1, 16)]
    for text, color in zip(numbers, colors, strict=True):
        light, dark = sorted(map(luminance, (to_rgb(text.get_color()), color)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 3.9


def luminance(color: tuple[float, ...]) -> float:
    """Relative luminance of an sRGB color, by WCAG 2."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_logarithmic_axis_has_no_bars_since_it_has_no_zero(made_up) -> None:
    logarithmic = [axes for name in CHARTS for axes in draw_one(made_up, name).axes if axes.get_xscale() == "log"]
    assert len(logarithmic) == 2
    assert not any(axes.patches for axes in logarithmic)


@pytest.mark.parametrize("many", [False, True], ids=["few points", "many"])
@pytest.mark.parametrize("name", CHARTS)
def test_every_text_of_a_chart_is_in_the_picture(made_up, name: str, many: bool) -> None:
    figure = draw_one(with_many_points(made_up) if many else made_up, name)
    figure.set_dpi(72)  # the resolution of SVG
    figure.draw_without_rendering()
    (left, bottom), (right, top) = figure.get_tightbbox().get_points()  # inches, around all that is drawn
    width, height = figure.get_size_inches()
    assert left > -0.02
    assert bottom > -0.02
    assert right < width + 0.02
    assert top < height + 0.02


def test_nothing_on_the_page_is_wider_than_a_narrow_window(made_up) -> None:
    """Check the style sheet alone: no width is fixed, long words may break, and each table scrolls by itself."""
    assert not re.search(r"(?<!max-)width:\s*\d+px|minmax\(\s*\d+px", STYLE)
    assert "overflow-wrap: anywhere" in STYLE
    page = html_page(made_up)
    assert page.count("<table>") == page.count('<div class="wide"><table>')
