"""`flamingo-rt train flamingo`: a small model from the command line to an answer; runs are never lost or mixed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flamingo_rt.cli import train as command
from flamingo_rt.presets import PRESETS
from flamingo_rt.training import trainer
from flamingo_rt.training.trainer import TrainingOptions


@pytest.fixture(autouse=True)
def small_preset(config, monkeypatch):
    """A preset that trains in a moment, on 4 pictures a step."""
    monkeypatch.setitem(PRESETS, "small", lambda: config)
    monkeypatch.setattr(trainer, "TOKENIZER_SCENES", 20)
    monkeypatch.setattr(trainer, "TrainingOptions", lambda **given: TrainingOptions(pictures=4, **given))


@pytest.fixture
def train(run):
    return lambda out, *arguments: run("train", "flamingo", "--preset", "small", "--steps", 2, "--out", out, *arguments)


@pytest.fixture
def unfinished(config, tmp_path):
    """The output of a run of two steps that ended after the first."""

    def stop(progress):
        if progress.step == 2:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        trainer.train(config, TrainingOptions(pictures=4, steps=2), out, save_seconds=0, on_step=stop)
    return out


def test_the_command_asks_for_as_many_questions_as_training_takes() -> None:
    questions = next(option for option in command.flamingo.params if option.name == "questions")
    assert (questions.type.min, questions.type.max) == (0, trainer.MOST_QUESTIONS)


def test_a_trained_checkpoint_answers(train, run, tmp_path) -> None:
    outcome = train(tmp_path / "out")
    assert outcome.code == 0
    assert f"flamingo-rt export --ckpt {tmp_path / 'out'}" in outcome.out
    assert "step 2/2" in outcome.err
    assert "tokens/s" in outcome.err
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert run("infer", "--model", tmp_path / "out", "--prompt", "Output:", "--max-new-tokens", 2).code == 0


def test_training_goes_on_from_a_checkpoint(train, tmp_path, monkeypatch) -> None:
    assert train(tmp_path / "first").code == 0
    seen = []
    monkeypatch.setattr(trainer, "train", lambda config, options, out, **others: seen.append((options, others)))
    outcome = train(tmp_path / "second", "--start-from", tmp_path / "first", "--questions", 0, "--learning-rate", 1e-5,
                    "--seed", 4)
    assert outcome.code == 0
    options, others = seen[0]
    assert options == replace(
        TrainingOptions(), pictures=4, steps=2, questions=0, learning_rate=1e-5, seed=4, vision_task_weight=0.0
    )
    assert others["start_from"] == tmp_path / "first"


def test_an_unfinished_run_is_resumed_when_asked(train, unfinished, tmp_path) -> None:
    refused = train(unfinished)
    assert refused.code == 2
    assert "--resume" in refused.err
    assert str(trainer.state_path(unfinished)) in refused.err
    resumed = train(unfinished, "--resume")
    assert resumed.code == 0
    assert "wrote" in resumed.out
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_an_unfinished_run_is_not_resumed_with_other_options(train, unfinished) -> None:
    before = trainer.state_path(unfinished).read_bytes()
    outcome = train(unfinished, "--resume", "--seed", 5)
    assert outcome.code == 2
    assert "other options" in outcome.err
    assert trainer.state_path(unfinished).read_bytes() == before


def test_an_output_that_exists_is_refused_before_any_training(train, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(trainer, "start_run", None)
    (tmp_path / "kept").write_text("kept")
    outcome = train(tmp_path)
    assert outcome.code == 2
    assert "--overwrite" in outcome.err
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]


def test_a_checkpoint_of_another_model_is_refused(run, checkpoint, tmp_path) -> None:
    outcome = run("train", "flamingo", "--preset", "tiny", "--out", tmp_path / "out", "--start-from", checkpoint)
    assert outcome.code == 2
    assert str(checkpoint) in outcome.err
    assert "'tiny'" in outcome.err


def test_lines_between_first_and_last_come_now_and_then(train, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(command, "PLAIN_SECONDS", 0.0)
    lines = train(tmp_path / "out", "--steps", 3).err.splitlines()
    assert [line.split()[1] for line in lines] == ["2/3", "3/3"]  # the clock starts with the first step
