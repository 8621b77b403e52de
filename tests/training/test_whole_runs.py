"""Whole runs on a folder of captioned pictures: how it is computed changes nothing of what is computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from captioned_run import PICTURES, RUN, captioned_run, reports_of

from flamingo_rt.training.options import FlamingoOptions


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> FlamingoOptions:
    return captioned_run(tmp_path_factory.mktemp("captioned") / "run")


def losses(options: FlamingoOptions, out: Path, **run) -> list[dict[str, float]]:
    reports = reports_of(options, out, **run)
    assert any(report.damaged for report in reports)
    return [{**report.losses, "damaged": len(report.damaged)} for report in reports]


@pytest.fixture(scope="module")
def expected(options, tmp_path_factory) -> list[dict[str, float]]:
    """Losses of the run in one process, each batch at once."""
    found = losses(options, tmp_path_factory.mktemp("expected") / "out")
    assert len(found) == RUN.steps
    return found


def near(expected: list[dict[str, float]], tolerance: float) -> list:
    return [pytest.approx(entry, rel=tolerance, abs=tolerance) for entry in expected]


@pytest.mark.parametrize(("workers", "accumulate"), [(1, 1), (3, 1), (0, 2), (1, 2), (3, 2)])
def test_workers_and_parts_of_a_batch_change_no_loss(options, expected, tmp_path, workers, accumulate) -> None:
    found = losses(options, tmp_path / "out", workers=workers, accumulate=accumulate)
    assert found == (expected if accumulate == 1 else near(expected, 1e-6))


@pytest.mark.parametrize("workers", [0, 1])
def test_kept_features_change_no_loss_whether_they_are_there_or_not(options, expected, tmp_path, workers) -> None:
    kept = replace(options, cache_features=str(tmp_path / "features"))
    cold = losses(kept, tmp_path / "cold", workers=workers)
    stored = {file: file.stat().st_mtime_ns for file in (tmp_path / "features").rglob("*.npy")}
    assert len(stored) == PICTURES
    assert losses(kept, tmp_path / "warm", workers=workers) == near(cold, 1e-6)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "features").rglob("*.npy")} == stored
    assert cold == near(expected, 0.01)  # they are rounded to float16


def test_features_are_kept_for_each_precision_apart(options, tmp_path) -> None:
    kept = replace(options, cache_features=str(tmp_path / "features"))
    for precision in ("fp32", "bf16"):
        losses(kept, tmp_path / precision, precision=precision, steps=2)
    folders = list((tmp_path / "features").iterdir())
    assert len(folders) == 2
    assert all(list(folder.rglob("*.npy")) for folder in folders)


def test_recomputed_activations_change_no_loss(options, expected, tmp_path) -> None:
    assert losses(options, tmp_path / "out", checkpoint_activations=True) == near(expected, 1e-6)
