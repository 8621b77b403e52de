"""The state of an unfinished run: what is damaged is refused when it is read, and the tensor is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toy_stage import ToyStage, two_datasets

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.training.sharding import World
from flamingo_rt.training.state import RunPosition, load_state, remove_state, save_state, trained_parameters

IDENTITY = {"toy": [1, 2.5], "name": None}


def optimizer(stage: ToyStage) -> torch.optim.AdamW:
    return torch.optim.AdamW(trained_parameters(stage.model).values(), lr=0.1)


@pytest.fixture
def saved(tmp_path) -> Path:
    """A state after one step."""
    stage = ToyStage(two_datasets())
    steps = optimizer(stage)
    stage.loss("one", stage.datasets[0].batches.draw(0, 0, 1).batch).total.backward()
    steps.step()
    save_state(tmp_path / "state", stage.model, steps, RunPosition(1, 8, 2), IDENTITY, World())
    return tmp_path / "state"


def load(path: Path) -> tuple[ToyStage, torch.optim.AdamW, RunPosition]:
    stage = ToyStage(two_datasets(), seed=5)
    steps = optimizer(stage)
    return stage, steps, load_state(path, stage.model, steps, IDENTITY, World())


def test_a_state_is_put_back_to_the_bit(saved) -> None:
    stage, steps, position = load(saved)
    assert position == RunPosition(1, 8, 2)
    stored = load_file(next(saved.glob("*.safetensors")))
    for name, parameter in trained_parameters(stage.model).items():
        assert torch.equal(parameter, stored[f"weight.{name}"])
        assert torch.equal(steps.state[parameter]["exp_avg_sq"], stored[f"exp_avg_sq.{name}"])
        assert steps.state[parameter]["step"] == 1


def test_a_dataset_named_like_a_free_option_is_compared(tmp_path) -> None:
    stage = ToyStage(two_datasets())
    steps = optimizer(stage)

    def identity(data: str) -> dict:
        return {"options": {"workers": data}, "datasets": {"workers": {"data": data}}}

    save_state(tmp_path / "state", stage.model, steps, RunPosition(), identity("one"), World())
    with pytest.raises(UsageError, match=r"another run: dataset workers: data was 'one', is 'two'\. Give"):
        load_state(tmp_path / "state", stage.model, steps, identity("two"), World())


@pytest.mark.parametrize(("files", "said"), [
    ([["a.tar", "1"], ["b.tar", "3"]], "dataset mine: file b.tar has other content"),
    ([["a.tar", "1"]], "dataset mine: file b.tar is missing"),
    ([["a.tar", "1"], ["b.tar", "2"], ["c.tar", "2"]], "dataset mine: file c.tar is new"),
    ([["b.tar", "2"], ["a.tar", "1"]], "dataset mine: the files are in another order"),
])
def test_files_of_the_data_that_changed_are_named(tmp_path, files, said) -> None:
    def identity(files: list, digest: str) -> dict:
        return {"datasets": {"mine": {"data": f"pairs, 4 samples, {digest}", "files": files}}}

    stage = ToyStage(two_datasets())
    steps, before = optimizer(stage), identity([("a.tar", "1"), ("b.tar", "2")], "one")
    save_state(tmp_path / "state", stage.model, steps, RunPosition(), before, World())
    assert load_state(tmp_path / "state", stage.model, steps, before, World()) == RunPosition()
    with pytest.raises(UsageError, match=rf"another run: {said}\. Give"):
        load_state(tmp_path / "state", stage.model, steps, identity(files, "two"), World())


def test_frozen_weights_and_pickles_are_not_in_it(saved) -> None:
    assert not any("frozen" in name for name in load_file(next(saved.glob("*.safetensors"))))
    assert sorted(file.suffix for file in saved.iterdir()) == [".json", ".safetensors"]


def test_a_finished_runs_state_is_removed_and_nothing_else(saved) -> None:
    (saved / "notes.txt").write_text("mine")
    remove_state(saved)
    assert [file.name for file in saved.iterdir()] == ["notes.txt"]


def tensors(change):
    """A damage that changes the tensors of the file."""

    def damage(path: Path) -> None:
        file = next(path.glob("*.safetensors"))
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
        stored = load_file(file)
        change(stored)
        save_file(stored, file, metadata)

    return damage


def run_file(**changes):
    """A damage that changes run.json."""

    def damage(path: Path) -> None:
        file = path / "run.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return damage


def raw(change):
    """A damage that changes the bytes of the tensors' file."""

    def damage(path: Path) -> None:
        file = next(path.glob("*.safetensors"))
        file.write_bytes(change(file.read_bytes()))

    return damage


DAMAGES = {
    "cut short": (raw(lambda data: data[:-40]), "damaged"),
    "empty": (raw(lambda data: b""), "damaged"),
    "places of the pieces gone": (raw(lambda data: data.replace(b"saved_offsets", b"saved_0ffsets")), "damaged"),
    "a piece elsewhere": (raw(lambda data: data.replace(b"[0, 0]", b"[1, 0]", 1)), "trained.weight"),
    "file gone": (lambda path: next(path.glob("*.safetensors")).unlink(), "tensor weight.gate is missing"),
    "tensor missing": (tensors(lambda stored: stored.pop("weight.trained.weight")), "weight.trained.weight is missing"),
    "moment missing": (tensors(lambda stored: stored.pop("exp_avg.gate")), "exp_avg.gate is missing"),
    "shape": (tensors(lambda stored: stored.update({"exp_avg.trained.bias": torch.zeros(4)})), "exp_avg.trained.bias"),
    "type": (tensors(lambda stored: stored.update({"weight.gate": torch.ones(1).half()})), "weight.gate is F16"),
    "no number": (tensors(lambda stored: stored["weight.trained.bias"].fill_(torch.nan)), "weight.trained.bias holds"),
    "negative second moment": (tensors(lambda stored: stored["exp_avg_sq.gate"].fill_(-1)), "exp_avg_sq.gate holds"),
    "run.json gone": (lambda path: (path / "run.json").unlink(), "run.json"),
    "run.json no JSON": (lambda path: (path / "run.json").write_text("{"), "run.json"),
    "other format": (run_file(format=99), "not the state of a run"),
    "earlier format": (run_file(format=2), "is the state of an earlier version"),
    "step no number": (run_file(step="many"), "step is 'many'"),
    "step negative": (run_file(step=-1), "step is -1"),
    "counts gone": (run_file(damaged=None), "damaged is None"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_state_is_refused_with_what_is_wrong(saved, name) -> None:
    damage, message = DAMAGES[name]
    damage(saved)
    with pytest.raises(DataError) as caught:
        load(saved)
    assert message in str(caught.value)
    assert str(saved) in str(caught.value)


def test_a_tensor_of_another_model_is_refused(saved) -> None:
    tensors(lambda stored: stored.update({"weight.extra": torch.zeros(2)}))(saved)
    with pytest.raises(DataError, match=r"damaged|weight\.extra is no part of this model"):
        load(saved)
