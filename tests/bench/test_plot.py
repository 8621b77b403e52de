"""Charts: whole, self-contained files; how they look is for eyes."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from flamingo_rt.bench.page import html_page, write_plot
from flamingo_rt.bench.plot import CHARTS, draw_all, draw_one, to_svg
from flamingo_rt.errors import DataError

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
    assert len(set(ids)) == len(ids)  # the charts of a page do not take each other's
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', page)) <= set(ids)


def test_every_chart_has_a_title_and_labels_with_units(made_up) -> None:
    axes = {name: draw_one(made_up, name).axes[0] for name in CHARTS}
    assert all(chart.get_title(loc="left") and chart.get_xlabel() for chart in axes.values())
    assert "ms" in axes["latency"].get_ylabel()
    assert "ms" in axes["stages"].get_xlabel()
    assert "FLOP/byte" in axes["roofline"].get_xlabel()
    assert draw_all(made_up).get_suptitle().startswith("tiny & mighty")


@pytest.mark.parametrize("shots", [slice(0, 1), slice(1, 2)])
def test_one_number_of_shots_is_enough(made_up, shots: slice) -> None:
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
