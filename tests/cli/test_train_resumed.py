"""`flamingo-rt train` after runs that broke off: they go on as if they had not, and are never lost or mixed."""

from __future__ import annotations

import os
import shlex

import pytest
from made_data import captions, png

from flamingo_rt.cli import training_progress
from flamingo_rt.training.run_log import StepReport, log_path, read_log
from flamingo_rt.training.state import state_path


def interrupt_at(monkeypatch, step: int):
    """Let the run end at once when this step is shown; gives what takes it back."""
    shown = training_progress.TrainingProgress.step

    def show(self, report: StepReport) -> None:
        shown(self, report)
        if report.step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr("flamingo_rt.cli.train.TrainingProgress.step", show)
    return lambda: monkeypatch.setattr("flamingo_rt.cli.train.TrainingProgress.step", shown)


@pytest.fixture
def unfinished(train, tmp_path, monkeypatch):
    """The output of a run of three steps that was interrupted in the second, and what was said then."""
    again = interrupt_at(monkeypatch, 2)
    outcome = train(tmp_path / "out", "--save-seconds", "1e-9")
    again()
    assert outcome.code == 130
    return tmp_path / "out", outcome.err


def test_the_command_that_an_interrupt_names_ends_the_run_as_if_it_had_not_come(
    train, run, unfinished, tmp_path
) -> None:
    out, said = unfinished
    line = said.splitlines()[-1]
    assert line.startswith(f"interrupted: the state is in {state_path(out)}; go on with: ")
    command = shlex.split(line.split("go on with: ")[1])
    resumed = run(*command[command.index("train"):])
    assert resumed.code == 0
    assert f"wrote {out}" in resumed.out
    assert not state_path(out).exists()
    assert [entry["step"] for entry in read_log(log_path(out))] == [1, 2, 3]
    assert train(tmp_path / "whole", "--save-seconds", "1e-9").code == 0
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_a_run_that_goes_on_says_from_where_and_one_that_cannot_starts(train, unfinished, tmp_path) -> None:
    out, _ = unfinished
    assert train(out, "--resume").err.startswith(f"goes on after step 1 of 3, from {state_path(out)}\n")
    other = train(tmp_path / "other", "--resume")
    assert other.code == 0
    assert other.err.startswith(f"there is no unfinished run at {state_path(tmp_path / 'other')}: starts from step 1\n")


def test_a_finished_run_that_is_resumed_stays_and_is_no_error(train, tmp_path) -> None:
    out = tmp_path / "out"
    assert train(out).code == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    again = train(out, "--resume")
    assert (again.code, again.err) == (0, "")
    assert again.out == f"{out} is finished; next: flamingo-rt export --ckpt {out} --out BUNDLE\n"
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    longer = train(out, "--resume", "--steps", 5)
    assert longer.code == 2
    assert "already exists" in longer.err


def test_an_unfinished_run_is_not_started_anew_unasked(train, unfinished) -> None:
    out, _ = unfinished
    refused = train(out, "--save-seconds", "1e-9")
    assert refused.code == 2
    assert f"an unfinished run is at {state_path(out)}: continue it with --resume" in refused.err
    assert state_path(out).exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("--seed", 5), "options.seed was 0, is 5"),
        (("--lora", 2), "trained.lora was 0, is 2"),
        (("--unfreeze", "language"), "trained.unfreeze was [], is ['language']"),
    ],
    ids=["seed", "lora", "unfreeze"],
)
def test_a_run_is_not_resumed_as_another_and_the_difference_is_named(train, unfinished, changes, said) -> None:
    out, _ = unfinished
    before = {file.name: file.read_bytes() for file in state_path(out).iterdir()}
    outcome = train(out, "--resume", "--save-seconds", "1e-9", *changes)
    assert outcome.code == 2
    assert said in outcome.err
    assert {file.name: file.read_bytes() for file in state_path(out).iterdir()} == before


@pytest.mark.parametrize(("change", "said"), [
    ("another folder", "dataset mine: data was 'pairs, 12 lines, "),
    (",batch=8", "dataset mine: batch was 4, is 8. Give"),
    (",batch=4,weight=0.5", "dataset mine: weight was 1.0, is 0.5. Give"),
    (",batch=4,name=other", "dataset mine is missing; dataset other is new. Give"),
])
def test_a_run_is_not_resumed_on_other_data(train, unfinished, captioned, tmp_path, change, said) -> None:
    out, _ = unfinished
    other = f"{captions(tmp_path / 'mine', 11)},batch=4" if change == "another folder" else f"{captioned}{change}"
    outcome = train(out, "--resume", data=other)
    assert outcome.code == 2
    assert f"is of another run: {said}" in outcome.err
    assert f"or delete {state_path(out)}" in outcome.err


def test_a_picture_that_changed_is_named_and_the_times_of_files_do_not_matter(train, tmp_path, monkeypatch) -> None:
    data, out = captions(tmp_path / "mine", 6), tmp_path / "out"
    again = interrupt_at(monkeypatch, 2)
    assert train(out, "--save-seconds", "1e-9", data=f"{data},batch=4").code == 130
    again()
    content = (data / "3.png").read_bytes()
    (data / "3.png").write_bytes(png(15, (30, 31)))
    refused = train(out, "--resume", data=f"{data},batch=4")
    assert refused.code == 2
    assert "is of another run: dataset mine: file 3.png has other content. Give" in refused.err
    (data / "3.png").write_bytes(content)
    for file in data.iterdir():
        os.utime(file, (1, 1))
    assert train(out, "--resume", data=f"{data},batch=4").code == 0


def test_an_interrupt_before_the_first_state_says_so(train, tmp_path, monkeypatch) -> None:
    interrupt_at(monkeypatch, 1)
    outcome = train(tmp_path / "out")
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1] == "interrupted: nothing was saved yet"
