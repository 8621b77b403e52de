"""Benchmarks of accuracy that run the toolkit for bundles: what they ask of it, print and write."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import confidence, evaluated_bundles, quantization_cost, scenes_by_layout
from flamingo_rt.bundle import MANIFEST

SCENES = {"layout": "square", "captions": {"1 object(s)": [2, 2], "digit": [0, 1]}, "answers": {"count": [5, 8]}}
QUANTIZED = {
    "scheme": "int4",
    "quality": {"tokens": 313, "changed": 6,
                "graphs": {"language_model": {"cosine": 0.99874, "lowest_cosine": 0.99786, "norm_ratio": 1.0}}},
    "accuracy": {"scenes": 3, "before": {"captions": 1.0}, "after": {"captions": 0.5}},
}


def result(folder: Path) -> dict[str, Any]:
    """The one dated result of a folder."""
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text())


def test_bundles_are_given_by_name() -> None:
    assert evaluated_bundles.named_bundle("mine=runs/a=b") == ("mine", "runs/a=b")
    with pytest.raises(argparse.ArgumentTypeError, match="for example mine=bundle"):
        evaluated_bundles.named_bundle("bundle")
    assert evaluated_bundles.bundles_asked([]) == {"packaged": None}
    assert evaluated_bundles.bundles_asked([("a", "x"), ("b", "y")]) == {"a": "x", "b": "y"}


def test_each_layout_of_each_bundle_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[tuple[str, ...]] = []

    def toolkit(*arguments: str) -> str:
        commands.append(arguments)
        return f"progress\n{json.dumps(SCENES)}\n"

    monkeypatch.setattr(evaluated_bundles, "toolkit", toolkit)
    monkeypatch.setattr(sys, "argv", ["_", "--model", "mine=bundle", "--scenes", "3", "--results", str(tmp_path)])
    scenes_by_layout.main()
    assert commands == [
        ("evaluate", "scenes", "--layout", layout, "--scenes", "3", "--model", "bundle", "--json")
        for layout in ("square", "wide", "single")
    ]
    assert capsys.readouterr().out.splitlines() == [
        "== mine",
        "  square captions 2 of 3 (66.7%), answers 5 of 8 (62.5%)",
        "  wide   captions 2 of 3 (66.7%), answers 5 of 8 (62.5%)",
        "  single captions 2 of 3 (66.7%), answers 5 of 8 (62.5%)",
        "  square, captions: 1 object(s) 2 of 2, digit 0 of 1",
        "  square, answers: count 5 of 8",
    ]
    written = result(tmp_path)
    assert written["settings"] == {"scenes": 3}
    assert written["mine"] == dict.fromkeys(("square", "wide", "single"), SCENES)


def test_the_cost_of_each_quantization_is_what_its_manifest_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def toolkit(*arguments: str) -> str:
        out = Path(arguments[-1])
        out.mkdir()
        quantization = QUANTIZED if arguments[3:-2] == quantization_cost.export_options("nearest", 3) else None
        (out / MANIFEST).write_text(json.dumps({"quantization": quantization} if quantization else {}))
        (out / "weights").write_bytes(bytes(2_500_000))
        return ""

    monkeypatch.setattr(quantization_cost, "toolkit", toolkit)
    monkeypatch.setattr(sys, "argv", ["_", "--ways", "fp32,nearest", "--scenes", "3", "--results", str(tmp_path)])
    quantization_cost.main()
    assert capsys.readouterr().out.splitlines() == [
        "fp32       2.5 MB",
        "nearest    2.5 MB  cosine of the logits 0.99874 (lowest 0.99786), 6 of 313 tokens changed; "
        "right captions 100.0% before, 50.0% after",
    ]
    written = result(tmp_path)
    assert written["fp32"].keys() == {"bytes"}
    assert written["nearest"] == {"bytes": written["nearest"]["bytes"], **QUANTIZED}
    assert written["settings"]["options"]["nearest"] == [
        "--quantize", "int4", "--rounding", "nearest", "--calibration", "scenes", "--evaluate", "3",
    ]


def test_answers_below_a_probability_are_counted_by_kind_of_picture() -> None:
    measured = {confidence.OWN: np.linspace(0.9, 1.0, 101), "noise": np.array([0.1, 0.2, 0.95])}
    found = confidence.separations(measured)
    assert (found["percentile_5"], found["median"]) == (0.905, 0.95)
    assert found["kinds"]["noise"] == {"auc": pytest.approx(0.833, abs=2e-3), "below": 0.667}
    assert confidence.below(measured, 0.905) == {confidence.OWN: (5, 101), "noise": (2, 3)}
