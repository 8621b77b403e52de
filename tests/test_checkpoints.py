"""Checkpoints: what is written comes back equal, and anything else is refused by name."""

from __future__ import annotations

import json
import pickle
import resource
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flamingo_rt.checkpoints import (
    DTYPES,
    StoredModel,
    expected_shapes,
    is_checkpoint,
    open_checkpoint,
    save_checkpoint,
    write_checkpoint,
)
from flamingo_rt.config import CrossAttentionConfig, FlamingoConfig, LanguageConfig, ResamplerConfig, ViTConfig
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.files import check_output
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.weights.writing import write_shards

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
    stored = open_checkpoint(folder)
    assert stored.config == CONFIG
    assert stored.tokenizer == '{"tokenizer": 1}'
    read = stored.load()
    assert not read.training
    loaded = read.state_dict()
    assert list(loaded) == list(model.state_dict())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_a_loaded_model_computes_what_the_saved_one_did(folder, model):
    ids, index, rows = torch.tensor([[1, 2, 3]]), torch.tensor([[0, 1, 1]]), torch.tensor([[0]])
    pixels = torch.randn(1, 1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, _ = model.eval()(ids, index, pixels, rows)
        logits, _ = open_checkpoint(folder).load()(ids, index, pixels, rows)
    assert torch.equal(logits, expected)


def test_a_loaded_model_can_be_trained_further(folder):
    loaded = open_checkpoint(folder).load()
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in loaded.parameters())


def test_an_existing_checkpoint_is_kept_unless_overwrite(folder, model):
    with pytest.raises(UsageError, match="already exists"):
        save_checkpoint(folder, model, "{}")
    assert (folder / "tokenizer.json").read_text() == '{"tokenizer": 1}'
    save_checkpoint(folder, model, "{}", overwrite=True)
    assert (folder / "tokenizer.json").read_text() == "{}"


def test_a_disk_that_refuses_the_weights_costs_nothing(folder, model):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))  # room for the configuration
    try:
        with pytest.raises(DataError, match=r"cannot write .*checkpoint/model\.safetensors"):
            save_checkpoint(folder, model, "{}", overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (folder / "tokenizer.json").read_text() == '{"tokenizer": 1}'
    assert [entry.name for entry in folder.parent.iterdir()] == ["checkpoint"]
    open_checkpoint(folder).load()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_missing_file_is_named(folder, name):
    assert is_checkpoint(folder)
    (folder / name).unlink()
    assert is_checkpoint(folder) == (name == "tokenizer.json")
    with pytest.raises(DataError, match=rf"lacks {name}$"):
        open_checkpoint(folder)


def test_a_path_that_is_no_folder_is_refused(folder):
    for path, said in (("absent", "absent does not exist: give a checkpoint"), ("config.json", "not a checkpoint f")):
        with pytest.raises(DataError, match=said):
            open_checkpoint(folder / path)


def test_a_missing_tensor_is_named(folder):
    change_tensors(folder, lambda tensors: tensors.pop(LATENTS))
    with pytest.raises(DataError, match=rf"lacks 1 tensors .*{LATENTS}"):
        open_checkpoint(folder)


def test_an_unknown_tensor_is_named(folder):
    change_tensors(folder, lambda tensors: tensors.update(surprise=torch.zeros(1)))
    with pytest.raises(DataError, match=r"does not know: surprise"):
        open_checkpoint(folder)


def test_a_misshapen_tensor_is_named_with_both_shapes(folder):
    change_tensors(folder, lambda tensors: tensors.update({LATENTS: torch.zeros(4, 16)}))
    with pytest.raises(DataError, match=rf"{LATENTS} has shape \[4, 16\], config.json asks for \[3, 16\]"):
        open_checkpoint(folder)


def test_a_tensor_of_integers_is_named(folder):
    change_tensors(folder, lambda tensors: tensors.update({LATENTS: torch.zeros(3, 16, dtype=torch.int64)}))
    with pytest.raises(DataError, match=rf"{LATENTS} is torch\.int64"):
        open_checkpoint(folder)


def test_many_missing_tensors_are_counted_not_listed(folder):
    (folder / "config.json").write_text(
        json.dumps(replace(CONFIG, language=replace(CONFIG.language, layers=4)).to_dict())
    )
    with pytest.raises(DataError, match=r"lacks \d+ tensors .* and \d+ more"):
        open_checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_refused(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"model\.safetensors.*(is empty|damaged).*copy or download it again"):
        open_checkpoint(folder)


@pytest.mark.parametrize("text", ["", "{", "{}", '{"name": "small"}'])
def test_a_damaged_configuration_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(DataError, match="config"):
        open_checkpoint(folder)


def test_a_tokenizer_that_is_no_text_is_refused(folder):
    (folder / "tokenizer.json").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match=r"cannot read .*tokenizer\.json"):
        open_checkpoint(folder)


def test_the_expected_tensors_are_those_of_the_model_in_order(model):
    assert list(expected_shapes(CONFIG).items()) == [(name, tuple(t.shape)) for name, t in model.state_dict().items()]


def test_opening_reads_no_values(folder):
    """The values are cut off after they were found: only reading one can notice."""
    stored = open_checkpoint(folder)
    (folder / "model.safetensors").write_bytes(b"")
    assert {name: tensor.shape for name, tensor in stored.tensors.items()} == expected_shapes(CONFIG)
    with pytest.raises(DataError, match=r"model\.safetensors"):
        stored.load()


# Types


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_matrices_are_stored_in_half_precision_and_vectors_are_not(folder, model, dtype, tmp_path):
    write_checkpoint(tmp_path / "half", open_checkpoint(folder).stored_as(dtype))
    found = load_file(tmp_path / "half" / "model.safetensors")
    for name, tensor in model.state_dict().items():
        expected = tensor.to(dtype if tensor.ndim > 1 else torch.float32)
        assert found[name].dtype == expected.dtype, name
        assert torch.equal(found[name], expected), name
    assert {tensor.ndim > 1 for tensor in found.values()} == {True, False}


def test_a_half_precision_checkpoint_is_loaded_in_float32(folder, model, tmp_path):
    write_checkpoint(tmp_path / "half", open_checkpoint(folder).stored_as(DTYPES["bf16"]))
    for name, tensor in open_checkpoint(tmp_path / "half").load().state_dict().items():
        original = model.state_dict()[name]
        expected = original.bfloat16().float() if original.ndim > 1 else original
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected), name


# Shards


@pytest.fixture
def sharded(tmp_path, folder, monkeypatch) -> Path:
    """The good checkpoint in files of at most 4 kB, which is less than its largest tensor."""
    monkeypatch.setattr("flamingo_rt.checkpoints.write_shards", partial(write_shards, shard_bytes=4000))
    path = tmp_path / "sharded"
    write_checkpoint(path, open_checkpoint(folder))
    return path


def test_a_sharded_checkpoint_comes_back_equal(sharded, model):
    assert len(list(sharded.glob("model-*.safetensors"))) > 3
    assert not (sharded / "model.safetensors").exists()
    stored = open_checkpoint(sharded)
    assert (stored.config, stored.tokenizer) == (CONFIG, '{"tokenizer": 1}')
    assert list(stored.tensors) == list(model.state_dict())
    loaded = stored.load().state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_a_missing_shard_is_named(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(DataError, match=rf"{shard.name} is missing"):
        open_checkpoint(sharded)


def test_a_missing_index_is_a_missing_file(sharded):
    assert is_checkpoint(sharded)
    (sharded / "model.safetensors.index.json").unlink()
    assert not is_checkpoint(sharded)
    with pytest.raises(DataError, match=r"lacks model\.safetensors$"):
        open_checkpoint(sharded)


def test_a_misshapen_tensor_of_a_shard_is_named_with_its_file(sharded):
    file = sharded / json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"][LATENTS]
    save_file(load_file(file) | {LATENTS: torch.zeros(4, 16)}, file)
    with pytest.raises(DataError, match=rf"{file.name}: tensor {LATENTS} has shape \[4, 16\]"):
        open_checkpoint(sharded)


def test_a_tensor_that_the_index_forgot_is_named_with_the_index(sharded):
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"][LATENTS]
    index.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"index\.json lacks 1 tensors .*{LATENTS}"):
        open_checkpoint(sharded)


def test_a_sharded_checkpoint_may_be_replaced_and_leaves_nothing_of_the_old_one(sharded, model, monkeypatch):
    check_output(sharded, overwrite=True)
    monkeypatch.undo()
    save_checkpoint(sharded, model, "{}", overwrite=True)
    assert {entry.name for entry in sharded.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}


def test_a_sharded_checkpoint_beside_a_folder_is_not_replaced(sharded):
    (sharded / "photographs").mkdir()
    with pytest.raises(UsageError, match="holds more than a bundle or a checkpoint"):
        check_output(sharded, overwrite=True)


def test_writing_reports_every_tensor_once(folder, tmp_path, model):
    told = []
    write_checkpoint(tmp_path / "copy", open_checkpoint(folder), on_tensor=lambda *tensor: told.append(tensor))
    assert told == [(name, tensor.nbytes) for name, tensor in model.state_dict().items()]


def test_a_source_that_cannot_be_read_leaves_no_checkpoint(folder, tmp_path, model):
    def fail() -> torch.Tensor:
        raise DataError("the source is damaged")

    stored = open_checkpoint(folder)
    broken = dict(stored.tensors) | {LATENTS: replace(stored.tensors[LATENTS], read=fail)}
    with pytest.raises(DataError, match="the source is damaged"):
        write_checkpoint(tmp_path / "copy", StoredModel(CONFIG, "{}", broken))
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


# Pickles


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
        open_checkpoint(folder)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()  # the trap does work


def test_a_tokenizer_beyond_measure_is_refused_unread(folder):
    with (folder / "tokenizer.json").open("r+b") as file:
        file.truncate(3_000_000_000)  # a hole: it takes no space
    with pytest.raises(DataError, match=r"tokenizer\.json has more than 100 MB"):
        open_checkpoint(folder)
