"""``benchmarks.planned_memory``: cases are planned and measured, kept, and written with how far off they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_model import small_config

from benchmarks import planned_memory
from benchmarks.processes import Finished
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.loading import PACKAGED_BUNDLE
from flamingo_rt.memory_plan import Workload
from flamingo_rt.parameter_count import reckon_parameters
from flamingo_rt.system_memory import MEMINFO

SMALL = Workload(rows=2, pictures=2, tokens=200, answer=4)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One model, the packaged one, in one type, with one workload."""
    monkeypatch.setattr(planned_memory, "shapes", lambda: {"small": small_config()})
    monkeypatch.setattr(planned_memory, "TYPES", ("fp32",))
    monkeypatch.setattr(planned_memory, "WORKLOADS", (SMALL,))

    def link(config: FlamingoConfig, form: str, folder: Path) -> None:
        if not folder.exists():
            folder.symlink_to(PACKAGED_BUNDLE)

    monkeypatch.setattr(planned_memory, "make_bundle", link)


@pytest.mark.skipif(not MEMINFO.exists(), reason="this system does not say what a process takes")
def test_a_case_is_measured_in_a_process_and_compared_with_the_plan(tmp_path: Path, capsys, small) -> None:
    planned_memory.main(["--work", str(tmp_path), "--results", str(tmp_path / "results")])
    *table, last = capsys.readouterr().out.splitlines()
    (found,) = json.loads(next((tmp_path / "results").glob("*-memory-plan.json")).read_text())["cases"]
    assert 10_000_000 < found["peak"] < 400_000_000
    assert found["off"] == pytest.approx(found["planned"] / found["peak"] - 1)
    assert found["planned"] == sum(found["parts"].values()) - found["parts"]["python"]
    assert json.loads(last)["met"] == (abs(found["off"]) <= planned_memory.WITHIN)
    assert table[2].startswith("| small | fp32 | 2, 2, 200 | ")


def test_a_peak_that_was_measured_is_compared_with_another_planner_at_once(
    tmp_path: Path, capsys, monkeypatch, small
) -> None:
    peaks = iter([100_000_000, 200_000_000])

    def measured(command: tuple[str, ...]) -> Finished:
        told = json.dumps({"start": 1, "peak": next(peaks), "peak_of_two": None})
        return Finished(tuple(command), 0, 1.0, 0, told, None)

    monkeypatch.setattr(planned_memory, "run", measured)
    for options, peak in (([], 100), ([], 100), (["--again"], 200)):
        planned_memory.main(["--work", str(tmp_path), "--results", str(tmp_path), "--only", "small", *options])
        assert f"| {peak} MB |" in capsys.readouterr().out
    assert not list(tmp_path.glob("*-memory-plan.json")), "a part of the cases is no result"


def test_the_measured_models_are_large_enough_that_memory_counts() -> None:
    for config in planned_memory.shapes().values():
        assert 150e6 < reckon_parameters(config)["total"] < 300e6
        for workload in planned_memory.WORKLOADS:
            assert workload.tokens <= config.language.context
            assert replace(workload, rows=1).pictures <= config.max_visuals
