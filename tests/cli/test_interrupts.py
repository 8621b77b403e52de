"""An interrupted command ends with 130 and says what it left, and how to go on."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCENE = ROOT / "examples" / "scene.png"


def interrupt(*arguments, **options):
    raise KeyboardInterrupt


@pytest.fixture
def out(tmp_path):
    return tmp_path / "the out"


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_training_names_the_state_and_the_command_that_goes_on(
    run, monkeypatch, out, signal_number, heeded_interrupts
) -> None:
    state = out.with_name("the out.training")

    def train(*arguments, **options):
        state.mkdir(exist_ok=True)
        os.kill(os.getpid(), signal_number)

    monkeypatch.setattr("flamingo_rt.training.loop.train", train)
    monkeypatch.setattr("flamingo_rt.training.flamingo_start.open_flamingo_stage", lambda options, world: None)
    options = ("--data", "scenes", "--data", "scenes,name=more", "--out", out, "--steps", 50, "--learning-rate", 0.002)
    outcome = run("train", "flamingo", *options)
    assert outcome.code == 130
    line = outcome.err.strip()
    assert line.startswith(f"interrupted: the state is in {state}; go on with: ")
    again = shlex.split(line.split("go on with: ")[1])
    assert again[-(2 + len(options) + 1) :] == ["train", "flamingo", *map(str, options), "--resume"]
    resumed = run("train", "flamingo", *options, "--resume").err.strip()
    assert sorted(shlex.split(resumed)) == sorted(shlex.split(line))  # not twice


def test_training_says_when_nothing_was_saved(run, monkeypatch, out) -> None:
    monkeypatch.setattr("flamingo_rt.training.flamingo_start.open_flamingo_stage", interrupt)
    outcome = run("train", "flamingo", "--data", "scenes", "--out", out)
    assert outcome.code == 130
    assert outcome.err.strip() == "interrupted: nothing was saved yet"


@pytest.mark.parametrize(
    ("work", "arguments"),
    [
        ("flamingo_rt.export.pipeline.export_model", ["export", "--ckpt", ROOT / "models" / "tiny"]),
        ("flamingo_rt.runtime.model.Model.prompt", ["prompt", "compile", "--shot", SCENE, "Output: a star"]),
    ],
    ids=["export", "prompt compile"],
)
@pytest.mark.parametrize("when", ["nothing there", "something there", "after the writing"])
def test_an_interrupted_command_says_whether_its_output_was_written(
    run, monkeypatch, out, work, arguments, when
) -> None:
    if when == "something there":
        out.write_text("old")
    if arguments[0] == "export":
        monkeypatch.setattr("flamingo_rt.files.check_output", lambda *arguments: None)

    def worked(*arguments, **options):
        if when == "after the writing":
            out.write_text("new")
        raise KeyboardInterrupt

    monkeypatch.setattr(work, worked)
    outcome = run(*arguments, "--out", out, "--overwrite")
    said = {"nothing there": "was not written", "something there": "is as it was",
            "after the writing": "was written before that"}
    assert outcome.code == 130
    assert outcome.err.strip() == f"interrupted: {out} {said[when]}"


def test_an_interrupted_benchmark_says_that_there_is_no_result(run, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("flamingo_rt.bench.measure", interrupt)
    outcome = run("bench", "--plot", tmp_path / "x.svg")
    assert outcome.code == 130
    assert outcome.err.strip() == f"interrupted: nothing was printed, {tmp_path / 'x.svg'} was not drawn"
