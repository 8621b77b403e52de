"""Checkpoints: what is written comes back equal, and anything else is refused by name."""

from __future__ import annotations

import json
import pickle
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flamingo_rt.checkpoints import copy_tokenizer, is_checkpoint, load_checkpoint, save_checkpoint
from flamingo_rt.config import CrossAttentionConfig, FlamingoConfig, LanguageConfig, ResamplerConfig, ViTConfig
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.model.flamingo import Flamingo

CONFIG = FlamingoConfig(
    name="small",
    vision=ViTConfig(image_size=8, patch_size=4, width=16, layers=1, heads=2, ff_width=16),
    resampler=ResamplerConfig(width=16, layers=1, heads=2, head_width=8, latents=3, max_frames=2),
    cross_attention=CrossAttentionConfig(heads=2, head_width=8),
    language=LanguageConfig(vocab_size=19, width=16, layers=2, heads=2, kv_heads=2, head_width=8, ff_width=16),
)
LATENTS = "resampler.latents"


@pytest.fixture(scope="module")
def model() -> Flamingo:
    torch.manual_seed(0)
    return Flamingo(CONFIG)


@pytest.fixture
def folder(tmp_path, model) -> Path:
    """A good checkpoint to spoil."""
    path = tmp_path / "checkpoint"
    save_checkpoint(path, model, '{"tokenizer": 1}')
    return path


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_checkpoint_comes_back_equal(folder, model):
    checkpoint = load_checkpoint(folder)
    assert checkpoint.model.config == CONFIG
    assert not checkpoint.model.training
    assert checkpoint.tokenizer.read_text() == '{"tokenizer": 1}'
    loaded = checkpoint.model.state_dict()
    assert list(loaded) == list(model.state_dict())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_a_loaded_model_computes_what_the_saved_one_did(folder, model):
    ids, index, rows = torch.tensor([[1, 2, 3]]), torch.tensor([[0, 1, 1]]), torch.tensor([[0]])
    pixels = torch.randn(1, 1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, _ = model.eval()(ids, index, pixels, rows)
        logits, _ = load_checkpoint(folder).model(ids, index, pixels, rows)
    assert torch.equal(logits, expected)


def test_a_loaded_model_can_be_trained_further(folder):
    loaded = load_checkpoint(folder).model
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in loaded.parameters())


def test_an_existing_checkpoint_is_kept_unless_overwrite(folder, model):
    with pytest.raises(UsageError, match="already exists"):
        save_checkpoint(folder, model, "{}")
    assert (folder / "tokenizer.json").read_text() == '{"tokenizer": 1}'
    save_checkpoint(folder, model, "{}", overwrite=True)
    assert (folder / "tokenizer.json").read_text() == "{}"


def test_a_disk_that_refuses_the_weights_costs_nothing(folder, model):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"cannot write .*checkpoint/model\.safetensors"):
            save_checkpoint(folder, model, "{}", overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (folder / "tokenizer.json").read_text() == '{"tokenizer": 1}'
    assert [entry.name for entry in folder.parent.iterdir()] == ["checkpoint"]
    load_checkpoint(folder)


def test_the_tokenizer_is_copied(folder, tmp_path):
    copy_tokenizer(load_checkpoint(folder), tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == '{"tokenizer": 1}'


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_missing_file_is_named(folder, name):
    assert is_checkpoint(folder)
    (folder / name).unlink()
    assert is_checkpoint(folder) == (name == "tokenizer.json")
    with pytest.raises(DataError, match=rf"lacks {name}$"):
        load_checkpoint(folder)


def test_a_path_that_is_no_folder_is_refused(folder):
    for path in (folder / "absent", folder / "config.json"):
        with pytest.raises(DataError, match="not a checkpoint folder"):
            load_checkpoint(path)


def test_a_missing_tensor_is_named(folder):
    change_tensors(folder, lambda tensors: tensors.pop(LATENTS))
    with pytest.raises(DataError, match=rf"lacks 1 tensors .*{LATENTS}"):
        load_checkpoint(folder)


def test_an_unknown_tensor_is_named(folder):
    change_tensors(folder, lambda tensors: tensors.update(surprise=torch.zeros(1)))
    with pytest.raises(DataError, match=r"does not know: surprise"):
        load_checkpoint(folder)


def test_a_misshapen_tensor_is_named_with_both_shapes(folder):
    change_tensors(folder, lambda tensors: tensors.update({LATENTS: torch.zeros(4, 16)}))
    with pytest.raises(DataError, match=rf"{LATENTS} has shape \[4, 16\], config.json asks for \[3, 16\]"):
        load_checkpoint(folder)


def test_a_tensor_of_integers_is_named(folder):
    change_tensors(folder, lambda tensors: tensors.update({LATENTS: torch.zeros(3, 16, dtype=torch.int64)}))
    with pytest.raises(DataError, match=rf"{LATENTS} is torch\.int64"):
        load_checkpoint(folder)


def test_many_missing_tensors_are_counted_not_listed(folder):
    (folder / "config.json").write_text(
        json.dumps(replace(CONFIG, language=replace(CONFIG.language, layers=4)).to_dict())
    )
    with pytest.raises(DataError, match=r"lacks \d+ tensors .* and \d+ more"):
        load_checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_refused(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"cannot read .*model\.safetensors"):
        load_checkpoint(folder)


@pytest.mark.parametrize("text", ["", "{", "{}", '{"name": "small"}'])
def test_a_damaged_configuration_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(DataError, match="config"):
        load_checkpoint(folder)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self):
        return Path.touch, (self.sprung,)


@pytest.mark.parametrize("write", [lambda trap, file: file.write_bytes(pickle.dumps(trap)), torch.save])
def test_a_pickle_is_refused_and_never_opened(folder, tmp_path, write):
    sprung = tmp_path / "sprung"
    write(Trap(sprung), folder / "model.safetensors")
    with pytest.raises(DataError, match="cannot read"):
        load_checkpoint(folder)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()  # the trap does work
