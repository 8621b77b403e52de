"""`flamingo-rt train --resume` where a result is there: whether it is that of this run, and nothing is left to do."""

from __future__ import annotations

import pytest

from flamingo_rt.training import loop
from flamingo_rt.training.run_log import finished_steps, log_path, read_log
from flamingo_rt.training.state import state_path


def finished(out) -> str:
    return f"{out} is finished; next: flamingo-rt export --ckpt {out} --out BUNDLE\n"


@pytest.mark.parametrize("place", ["written", "marked"])
def test_a_kill_after_the_result_was_written_leaves_a_run_that_is_finished_when_it_is_resumed(
    train, tmp_path, monkeypatch, place
) -> None:
    def killed(*arguments) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        if place == "written":
            patched.setattr("flamingo_rt.training.run_log.RunLog.finish", killed)
        else:
            patched.setattr(loop, "remove_state", killed)
        assert train(out).code == 130
    assert state_path(out).exists()
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    again = train(out, "--resume")
    assert (again.code, again.out) == (0, finished(out))
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert not state_path(out).exists()
    assert finished_steps(out) == 3
    assert [entry["step"] for entry in read_log(log_path(out))] == [1, 2, 3]
    assert train(out, "--resume").out == finished(out)


def test_a_later_run_that_broke_off_is_not_finished_by_the_result_that_it_was_to_replace(
    train, tmp_path, monkeypatch
) -> None:
    def killed(*arguments) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    assert train(out).code == 0
    with monkeypatch.context() as patched:
        patched.setattr(loop, "save_state", killed)  # after the first step's line
        assert train(out, "--overwrite", "--save-seconds", "1e-9").code == 130
    again = train(out, "--resume", "--steps", 1)
    assert again.code == 2
    assert "already exists" in again.err


def test_the_result_of_another_stage_is_not_this_run(train, run, tmp_path, captioned) -> None:
    out = tmp_path / "out"
    assert train(out).code == 0
    other = run("train", "vision", "--data", f"{captioned},batch=4", "--steps", 3, "--out", out, "--resume")
    assert other.code == 2
    assert "already exists" in other.err


@pytest.mark.parametrize("given", [".", "..", "/"])
def test_a_folder_without_a_name_is_refused_and_no_traceback(train, tmp_path, monkeypatch, given) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    for options in (("--resume",), ("--resume", "--overwrite"), ()):
        assert train(given, *options).code == 2
