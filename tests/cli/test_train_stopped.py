"""Ctrl-C and SIGTERM during `flamingo-rt train`: the step is finished and saved, and the run goes on as if unbroken."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flamingo_rt.child_process import child_environment, python_command
from flamingo_rt.cli import training_progress
from flamingo_rt.training.run_log import last_step, log_path, read_log
from flamingo_rt.training.state import state_path

RARELY = ("--save-seconds", 1e6)
ENDLESS = ("--steps", "1000000", "--workers", "2", "--warmup-steps", "0", *map(str, RARELY))
pytestmark = pytest.mark.usefixtures("heeded_interrupts")


def send_at(monkeypatch, step: int, *numbers: int) -> None:
    """Send these signals to this process when the step is shown, once."""
    shown, left = training_progress.TrainingProgress.step, list(numbers)

    def show(self, report) -> None:
        shown(self, report)
        while report.step == step and left:
            os.kill(os.getpid(), left.pop(0))

    monkeypatch.setattr("flamingo_rt.cli.train.TrainingProgress.step", show)


def saved_step(out: Path) -> int:
    return json.loads((state_path(out) / "run.json").read_text())["step"]


def numbers(out: Path) -> list[tuple]:
    return [(line["step"], line["loss"], line["gradient_norm"], line["tokens"]) for line in read_log(log_path(out))]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_the_step_is_saved_and_the_command_that_is_named_ends_the_run_as_if_unbroken(
    train, run, tmp_path, monkeypatch, number, code, step
) -> None:
    assert train(tmp_path / "whole", *RARELY).code == 0
    out = tmp_path / "out"
    send_at(monkeypatch, step, number)
    stopped = train(out, *RARELY)
    assert (stopped.code, stopped.out) == (code, "")
    line = stopped.err.splitlines()[-1]
    assert line.startswith(f"interrupted: saved step {step} of 3 in {state_path(out)}; go on with: ")
    assert saved_step(out) == last_step(out) == step
    assert not out.exists()
    command = shlex.split(line.split("go on with: ")[1])
    assert run(*command[command.index("train"):]).code == 0
    assert numbers(out) == numbers(tmp_path / "whole")
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_at_once_and_leaves_the_state_that_was_saved_last(
    train, tmp_path, monkeypatch, first
) -> None:
    out = tmp_path / "out"
    send_at(monkeypatch, 3, first, signal.SIGINT)
    stopped = train(out, "--save-seconds", "1e-9")
    assert stopped.code == 130
    assert stopped.err.splitlines()[-1].startswith(f"interrupted: the state is in {state_path(out)}; go on with: ")
    assert saved_step(out) == 2
    assert train(out, "--resume", "--save-seconds", "1e-9").code == 0


def test_a_second_sigterm_is_that_of_torchrun_and_ends_nothing(train, tmp_path, monkeypatch) -> None:
    send_at(monkeypatch, 2, signal.SIGTERM, signal.SIGTERM)
    assert train(tmp_path / "out", *RARELY).code == 143
    assert saved_step(tmp_path / "out") == 2


def test_signals_are_as_before_when_the_run_has_ended(train, tmp_path) -> None:
    assert train(tmp_path / "out").code == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler


def test_a_signal_that_is_ignored_stays_ignored(train, tmp_path, monkeypatch) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    send_at(monkeypatch, 2, signal.SIGINT)
    assert train(tmp_path / "out").code == 0


def started(tmp_path: Path, checkpoint: Path, captioned: Path, *before: str) -> subprocess.Popen:
    """A run without an end in a process group of its own, after its second step."""
    command = (*before, "train", "flamingo", "--start-from", str(checkpoint), "--data", f"{captioned},batch=4",
               *ENDLESS, "--out", str(tmp_path / "out"))
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(command, env=child_environment({"OMP_NUM_THREADS": "1"}), stderr=errors,
                                   start_new_session=True)
    try:
        while last_step(tmp_path / "out") < 2:
            assert process.poll() is None, (tmp_path / "errors").read_text()
            time.sleep(0.05)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_processes_of_a_group_leaves_those_that_draw_data_alive_for_the_last_step(
    tmp_path, checkpoint, captioned, number, code
) -> None:
    process = started(tmp_path, checkpoint, captioned, *python_command("flamingo_rt"))
    os.killpg(process.pid, number)
    assert process.wait(60) == code
    said = (tmp_path / "errors").read_text()
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith(f"interrupted: saved step {saved_step(tmp_path / 'out')} of 1000000 in ")
    assert saved_step(tmp_path / "out") == last_step(tmp_path / "out")


@pytest.mark.slow
def test_torchrun_that_gets_sigterm_leaves_the_state_of_one_step_of_all_processes(
    tmp_path, checkpoint, captioned
) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = started(tmp_path, checkpoint, captioned, *torchrun, "-m", "flamingo_rt")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    said = (tmp_path / "errors").read_text()
    assert f"interrupted: saved step {saved_step(tmp_path / 'out')} of 1000000 in " in said
    assert said.count("interrupted: ") == 1
    assert "--resume, on any number of processes" in said
    assert saved_step(tmp_path / "out") == last_step(tmp_path / "out")
