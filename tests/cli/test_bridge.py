"""`flamingo-rt bridge`: taken and joined again, and one line for what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from made_encoders import Encoder, external_checkpoint, imported

from flamingo_rt.checkpoints import open_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``encoder``, and ``model`` with it."""
    folder = tmp_path_factory.mktemp("bridge")
    external_checkpoint(folder / "model", imported(folder))
    return folder


@pytest.fixture
def take(run, folder: Path, tmp_path: Path):
    return lambda *options: run("bridge", "take", "--ckpt", folder / "model", "--out", tmp_path / "bridge", *options)


@pytest.fixture
def join(run, folder: Path, tmp_path: Path):
    def call(*options, vision: Path = folder / "encoder"):
        return run("bridge", "join", "--bridge", tmp_path / "bridge", "--vision", vision, "--language",
                   folder / "model", "--out", tmp_path / "joined", *options)

    return call


def test_what_is_taken_can_be_joined_and_answers(run, take, join, folder: Path, tmp_path: Path) -> None:
    taken = json.loads(take("--dtype", "fp32", "--json").out)
    assert taken["bridge"] == str(tmp_path / "bridge")
    joined = json.loads(join("--json").out)
    model, found = open_checkpoint(folder / "model"), open_checkpoint(tmp_path / "joined")
    assert all(torch.equal(found.tensors[name].read(), tensor.read()) for name, tensor in model.tensors.items())
    assert (joined["checkpoint"], joined["name"]) == (str(tmp_path / "joined"), "small")
    assert joined["bytes"] == sum(tensor.nbytes for tensor in model.tensors.values())
    assert taken["bytes"] < joined["bytes"]
    answers = [run("infer", "--model", path, "--prompt", "Output:", "--max-new-tokens", 4).out
               for path in (folder / "model", tmp_path / "joined")]
    assert answers[0] == answers[1]


def test_lines_say_what_was_written(take, join, tmp_path: Path) -> None:
    outcome = take()
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"wrote {tmp_path / 'bridge'}: ")
    assert outcome.out.endswith(" MB (fp16)\n")
    assert join().out.startswith(f"wrote {tmp_path / 'joined'}: 0.")
    for again in (take, join):
        assert again().code == 2
        assert again("--overwrite").code == 0


def test_parts_are_compared_on_demand_when_a_bridge_is_taken(take, folder: Path, tmp_path: Path) -> None:
    assert take("--vision", folder / "encoder", "--language", folder / "model").code == 0
    outcome = take("--overwrite", "--vision", imported(tmp_path, Encoder(seed=1)))
    assert outcome.code == 1
    assert "unfreeze or lora" in outcome.err
    assert take("--overwrite", "--tokenizer", folder / "model").code == 2


def test_another_encoder_is_one_line_and_nothing_is_written(take, join, tmp_path: Path) -> None:
    take()
    outcome = join(vision=imported(tmp_path, Encoder(seed=1)))
    assert (outcome.code, outcome.out) == (1, "")
    assert "has other weights than the encoder that the bridge was trained on: give that one" in outcome.err
    assert not (tmp_path / "joined").exists()


def test_a_bridge_alone_is_no_model(run, take, folder: Path, tmp_path: Path) -> None:
    take()
    said = "is a bridge without its frozen parts: flamingo-rt bridge join makes it whole"
    data = ("--data", "scenes", "--out", tmp_path / "out")
    for command in (
        ("export", "--ckpt", tmp_path / "bridge", "--out", tmp_path / "out"),
        ("train", "flamingo", "--start-from", tmp_path / "bridge", *data),
        ("train", "flamingo", "--vision", tmp_path / "bridge", "--language", folder / "model", *data),
        ("infer", "--model", tmp_path / "bridge", "--prompt", "Output:"),
    ):
        outcome = run(*command)
        assert outcome.code == 1, command
        assert said in outcome.err
    assert not (tmp_path / "out").exists()
