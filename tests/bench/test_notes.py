"""Notes beside the figures of a report."""

from __future__ import annotations

from dataclasses import replace

from made_up_report import RATES, spread

from flamingo_rt.bench.bench_options import BenchOptions
from flamingo_rt.bench.notes import notes_on
from flamingo_rt.bench.results import Against

ASKED = BenchOptions()
FULL = replace(ASKED, shots=(0, 4, 8, 16, 32), context=(64, 1500))


def notes(report, asked=ASKED, measured=FULL, **changes) -> str:
    report = replace(report, **changes)
    return " ".join(notes_on(report.model, asked, measured, report.stages, report.decode, report.shots))


def test_a_usual_report_has_no_notes(made_up) -> None:
    assert notes(made_up) == ""


def test_defaults_that_were_left_out_are_named(made_up) -> None:
    said = notes(made_up, measured=replace(FULL, shots=(0, 4), context=(64, 992)))
    assert "8, 16, 32 shots" in said
    assert "992 tokens, not 1500" in said
    assert notes(made_up, FULL, replace(FULL, shots=(0,))) == ""  # it was asked for


def test_fewer_runs_than_asked_for_are_noted(made_up) -> None:
    none, most = made_up.shots
    assert "32 shots, cold (2)" in notes(made_up, shots=(none, replace(most, cold=spread(9.0, runs=2))))


def test_half_precision_on_onnx_runtime_reads_more_than_the_ceiling_counts(made_up) -> None:
    half = replace(made_up.model, dtype=dict.fromkeys(made_up.model.dtype, "bfloat16"))
    assert "bfloat16" in notes(made_up, model=half)
    assert notes(made_up, model=replace(half, backend="torch")) == ""


def test_a_figure_above_its_ceiling_is_explained(made_up) -> None:
    fast = replace(made_up.decode[0], against=Against.of(10**7, 10**8, 1.0, RATES))
    said = notes(made_up, decode=(fast,))
    assert "More than 100%" in said
    assert "caches" in said
    eight = replace(made_up.model, quantization=dict.fromkeys(made_up.model.quantization, "int8"))
    assert "quantized" in notes(made_up, decode=(fast,), model=eight)
