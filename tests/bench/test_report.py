"""The report on a terminal."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from flamingo_rt.bench.report import print_report
from flamingo_rt.bench.units import machine_line, milliseconds, model_line, scaled


def text_of(report, width: int = 120) -> str:
    file = io.StringIO()
    print_report(report, Console(file=file, width=width))
    return file.getvalue()


def test_theory_comes_before_what_was_reached(made_up) -> None:
    text = text_of(made_up)
    order = ["The machine", "50.0 GB/s", "Theory", "at least", "Measured", "Decode", "First token", "With a compiled"]
    places = [text.index(word) for word in order]
    assert places == sorted(places)


def test_figures_have_units_and_nothing_is_cut(made_up) -> None:
    text = text_of(made_up)
    for word in (
        "1.00 GFLOP", "5.00 ms", "50%", "prefill, 4 tokens", "250.0", "12.0 s", "21.0 ms",
        "32 shots cost 1.05 times what none cost", "250 MB at its peak", "Something to know.", "A <fast> CPU",
    ):
        assert word in text
    assert "…" not in text


@pytest.mark.parametrize("width", [80, 104])
def test_tables_fit_a_terminal_and_a_narrow_one_does_without_some_columns(made_up, width: int) -> None:
    text = text_of(made_up, width)
    tables = text[text.index("Theory") : text.index("With a compiled")]
    assert max(len(line) for line in tables.splitlines()) <= width
    assert "…" not in text
    assert ("quartiles" in text) == (width > 100)
    assert "of the ceiling" in text


def test_products_that_were_not_measured_are_said_to_be_missing(made_up) -> None:
    rates = replace(made_up.rates, flops=None, flops_by="not measured: no compiler", flops_each=())
    assert "not measured: no compiler" in text_of(replace(made_up, rates=rates))


def test_what_was_not_measured_is_left_out(made_up) -> None:
    from flamingo_rt.bench.machine import Memory

    text = text_of(replace(made_up, compiled_ratio=None, memory=Memory(None, None), notes=()))
    assert "With a compiled" not in text
    assert "Memory of the process" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (5_678_000, "5.68 MB"), (56_780_000, "56.8 MB"),
     (999_700_000, "1.00 GB"), (2.5e12, "2.50 TB"), (567.8e9, "568 GB")],
)
def test_bytes_have_three_digits(value: float, text: str) -> None:
    assert scaled(value, "B") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5571, "0.557 ms"), (0.99951, "1.00 ms"), (9.999, "10.0 ms"), (44.24, "44.2 ms"), (999.4, "999 ms"),
     (999.6, "1.00 s"), (12_345.0, "12.3 s")],
)
def test_times_have_three_digits(value: float, text: str) -> None:
    assert milliseconds(value) == text


def test_the_first_lines_name_model_and_machine(made_up) -> None:
    from flamingo_rt.bench.accelerators import Gpu, Jetson

    assert model_line(made_up) == "tiny & mighty, float32, 10.0 MB, backend ort, all cores"
    eight = replace(made_up.model, quantization={**made_up.model.quantization, "language_model": "int8"}, threads=1)
    assert "float32 and int8" in model_line(replace(made_up, model=eight))
    assert "1 thread" in model_line(replace(made_up, model=eight))
    orin = replace(made_up.machine, jetson=Jetson("Orin", "MAXN", True, {}),
                   gpus=(Gpu("H100", "1", None, None, None, None),))
    assert machine_line(replace(made_up, machine=orin)) == "A <fast> CPU, 2 cores, 24.0 GB, H100, Orin, MAXN"
