"""The end of a run: a last state that cannot be saved, a kill while the state is removed, too little memory, and what
else lies in the folder of a state."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_stage import ToyStage, two_datasets

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.training import loop, state
from flamingo_rt.training.damaged_samples import surely_more
from flamingo_rt.training.loop import train
from flamingo_rt.training.options import RunOptions
from flamingo_rt.training.run_log import RunLog, finished_steps, last_step
from flamingo_rt.training.sharding import World
from flamingo_rt.training.state import has_state, saved_step, state_path

OPTIONS = RunOptions(steps=3, learning_rate=0.05, warmup_steps=2, workers=0, save_seconds=1e-9)


def run(out: Path, options: RunOptions = OPTIONS, **more) -> tuple[bool, list[int]]:
    """Whether the run had anything to do, and its steps."""
    steps: list[int] = []
    done = train(ToyStage(two_datasets()), options, out, World(), on_step=lambda report: steps.append(report.step),
                 **more)
    return done, steps


def fail_to_save(monkeypatch, step: int) -> None:
    """Let the disk be full when this step's state is to be saved."""
    calls: list[None] = []

    def check_space(*arguments) -> None:
        calls.append(None)
        if len(calls) == step:
            raise DataError("its disk has 0.0 MB left")

    monkeypatch.setattr(state, "check_space", check_space)


def test_a_last_state_that_cannot_be_saved_is_warned_of_and_the_result_written(tmp_path, monkeypatch, caplog) -> None:
    fail_to_save(monkeypatch, 3)
    assert run(tmp_path / "out") == (True, [1, 2, 3])
    assert "the last state was not saved (its disk has 0.0 MB left); the result is written" in caplog.text
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    run(tmp_path / "whole")
    assert (tmp_path / "out" / "weights.json").read_bytes() == (tmp_path / "whole" / "weights.json").read_bytes()


def test_an_earlier_state_that_cannot_be_saved_ends_the_run(tmp_path, monkeypatch) -> None:
    fail_to_save(monkeypatch, 2)
    with pytest.raises(DataError, match="its disk has"):
        run(tmp_path / "out")
    assert saved_step(state_path(tmp_path / "out")) == 1




@pytest.fixture
def killed(tmp_path, monkeypatch) -> Path:
    """The output of a run that was killed between writing it and removing its state."""
    def kill(path: Path) -> None:
        (path / "shard-00001-model-00001-of-00001.safetensors").unlink()  # the first of its files
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(loop, "remove_state", kill)
        with pytest.raises(KeyboardInterrupt):
            run(out)
    assert out.exists()
    assert has_state(state_path(out))
    return out


def test_a_run_that_was_killed_after_its_result_was_written_is_finished_when_it_is_resumed(killed) -> None:
    before = (killed / "weights.json").read_bytes()
    told: list[str] = []
    assert run(killed, resume=True, on_written=lambda: told.append("written")) == (False, [])
    assert (killed / "weights.json").read_bytes() == before
    assert told == ["written"]
    assert not state_path(killed).exists()


def test_another_run_is_not_finished_by_the_state_of_one_that_was_killed(killed) -> None:
    with pytest.raises(UsageError, match=r"options\.seed was 0, is 1"):
        run(killed, replace(OPTIONS, seed=1), resume=True)
    with pytest.raises(UsageError, match="already exists"):
        run(killed)
    assert has_state(state_path(killed))


def test_an_output_that_was_to_be_replaced_is_not_taken_for_the_result(tmp_path, monkeypatch) -> None:
    """The run was killed after its last step, before it wrote anything; what is there is moved, and so copied."""
    def killed(self, out, overwrite) -> None:
        raise KeyboardInterrupt

    out, moved = tmp_path / "out", tmp_path / "moved" / "out"
    out.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(ToyStage, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            run(out, overwrite=True)
    with pytest.raises(UsageError, match="already exists"):
        run(out, resume=True)
    moved.mkdir(parents=True)
    (moved / "weights.json").write_text("{}")
    os.utime(moved / "weights.json", (1e9, 1e9))
    state_path(out).rename(state_path(moved))
    with pytest.raises(UsageError, match="already exists"):
        run(moved, resume=True)
    assert saved_step(state_path(moved)) == 3


def test_too_little_memory_for_the_result_says_that_the_state_stays(tmp_path, monkeypatch) -> None:
    def full(self, out, overwrite) -> None:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(ToyStage, "write", full)
    with pytest.raises(DataError, match=r"memory ran out while the result was .*\(none left\).*state is in .*--resume"):
        run(tmp_path / "out")
    assert saved_step(state_path(tmp_path / "out")) == 3


def test_what_a_file_browser_leaves_in_a_state_disturbs_nothing(tmp_path) -> None:
    path = state_path(tmp_path / "out")
    path.mkdir()
    (path / ".DS_Store").touch()
    assert run(tmp_path / "out") == (True, [1, 2, 3])


def test_another_file_in_a_state_is_named(tmp_path, monkeypatch) -> None:
    path = state_path(tmp_path / "out")

    def on_step(report) -> None:
        if report.step == 2:
            (path / "notes.txt").touch()

    with pytest.raises(UsageError, match=r"out\.training holds more than .* \(notes\.txt\).* move it away"):
        train(ToyStage(two_datasets()), OPTIONS, tmp_path / "out", World(), on_step=on_step)


def test_the_log_ends_with_a_mark_that_a_later_run_removes(tmp_path) -> None:
    out, seen = tmp_path / "out", []
    train(ToyStage(two_datasets()), OPTIONS, out, World(), on_step=seen.append)
    with RunLog(out) as log:
        for report in seen:
            log.add(report)
        assert finished_steps(out) == 0
        log.finish(3)
    assert (finished_steps(out), last_step(out)) == (3, 3)
    with RunLog(out) as log:
        log.add(seen[0])
    assert (finished_steps(out), last_step(out)) == (0, 1)


@pytest.mark.parametrize(("found", "read", "share", "more"), [
    (2, 199, 0.01, False), (5, 500, 0.01, False), (20, 1000, 0.01, False), (25, 1000, 0.01, True),
    (10, 100, 0.01, True), (1, 10_000, 0.0, True), (16, 16, 0.99, False), (16, 16, 0.5, True), (0, 10, 0.0, False),
    (10, 10, 1.0, False),
])
def test_more_damaged_samples_than_the_largest_share_are_told_from_chance(found, read, share, more) -> None:
    assert surely_more(found, read, share) is more


def test_half_of_the_largest_share_of_damaged_samples_stops_no_run() -> None:
    generator = torch.Generator().manual_seed(0)
    damaged = (torch.rand(200, 4000, generator=generator) < 0.005).cumsum(1)
    assert not any(surely_more(int(row[read - 1]), read, 0.01) for row in damaged for read in range(50, 4001, 50))
