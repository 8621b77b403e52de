"""Two ranks on CPUs, over gloo: the losses of one process, and states that either goes on from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from captioned_run import RUN, captioned_run, reports_of
from safetensors.torch import load_file
from test_loop import OPTIONS, losses, run, weights
from toy_run import stage_3

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The folder of two ranks' runs, and what they reported: run -> step -> (losses, gradient norm)."""
    folder = tmp_path_factory.mktemp("ranks")
    captioned_run(folder / "data")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "toy_run.py",
         str(folder), json.dumps(asdict(OPTIONS))],
        cwd=HERE, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}, capture_output=True,
        text=True, timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reports: dict[str, dict] = {"together": {}, "mixed": {}, "stopped": {}, "stops": {}, "stage 3": {}}
    for name, step, lost, norm in map(json.loads, done.stdout.splitlines()):
        reports[name][step] = (lost, norm)
    return folder, reports


@pytest.mark.parametrize("name", ["together", "mixed"])
def test_ranks_give_the_losses_of_one_process(ranks, tmp_path, name) -> None:
    """``mixed``: two steps of two ranks, two of one, two of two again."""
    alone = run(tmp_path / "alone", OPTIONS)
    folder, reports = ranks
    assert sorted(reports[name]) == [1, 2, 3, 4, 5, 6]
    for report, expected in zip(alone, losses(alone), strict=True):
        found, norm = reports[name][report.step]
        assert found == pytest.approx(expected, rel=1e-5)
        assert norm == pytest.approx(report.gradient_norm, rel=1e-5)
    mixed = weights(folder / name)
    for key, value in weights(tmp_path / "alone").items():
        torch.testing.assert_close(torch.tensor(mixed[key]), torch.tensor(value), rtol=1e-5, atol=1e-7)


def test_all_ranks_stop_after_the_step_in_which_one_got_a_signal_and_go_on_exactly(ranks) -> None:
    folder, reports = ranks
    assert reports["stops"] == {3: ({}, signal.SIGTERM)}
    assert reports["stopped"] == {step: reports["together"][step] for step in (4, 5, 6)}
    assert weights(folder / "stopped") == weights(folder / "together")


def test_ranks_give_the_losses_and_the_checkpoint_of_stage_3(ranks, tmp_path) -> None:
    folder, reports = ranks
    captioned_run(tmp_path / "data")
    alone = reports_of(stage_3(tmp_path), tmp_path / "alone")
    assert len(alone) == len(reports["stage 3"]) == RUN.steps
    for report in alone:
        found, norm = reports["stage 3"][report.step]
        assert found == pytest.approx(dict(report.losses), rel=1e-5)
        assert norm == pytest.approx(report.gradient_norm, rel=1e-4)
    expected, found = (load_file(path / "model.safetensors") for path in (tmp_path / "alone", folder / "stage 3"))
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
