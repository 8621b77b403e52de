"""Folders of a single tower: what is written comes back equal, and anything else is refused by name."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_model import small_checkpoint, small_config
from torch import Tensor

from flamingo_rt.config import LanguageConfig, TokensConfig
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.files import check_output
from flamingo_rt.model.flamingo import make_vision_encoder
from flamingo_rt.model.language_model import LanguageModel
from flamingo_rt.training.towers import folder_kind, read_tower, write_tower

LANGUAGE = LanguageConfig(vocab_size=19, width=16, layers=2, heads=2, kv_heads=2, head_width=8, ff_width=16)
CONFIGS = {
    "language": {"language": asdict(LANGUAGE), "tokens": asdict(TokensConfig())},
    "vision": {"vision": asdict(small_config().vision), "preprocessing": asdict(small_config().preprocessing)},
}
NORM = "language.norm.weight"


def tensors(kind: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = LanguageModel(LANGUAGE) if kind == "language" else make_vision_encoder(small_config().vision)
    return {f"{kind}.{name}": tensor for name, tensor in model.state_dict().items()}


def written(path: Path, kind: str, **more: object) -> Path:
    write_tower(path, kind, {**CONFIGS[kind], **more}, tensors(kind), '{"tokenizer": 1}')
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good language tower to spoil."""
    return written(tmp_path / "tower", "language")


def change_config(folder: Path, **changes: object) -> None:
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, **changes}))


def change_tensors(folder: Path, **changes: Tensor | None) -> None:
    found = load_file(folder / "model.safetensors") | {name.replace("__", "."): t for name, t in changes.items()}
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, folder / "model.safetensors")


def refusal(folder: Path, kind: str = "language") -> str:
    with pytest.raises(DataError) as caught:
        read_tower(folder, kind)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["language", "vision"])
def test_a_tower_comes_back_equal(tmp_path: Path, kind: str) -> None:
    tower = read_tower(written(tmp_path / "tower", kind), kind)
    assert (tower.kind, tower.tokenizer) == (kind, '{"tokenizer": 1}')
    assert folder_kind(tmp_path / "tower") == kind
    if kind == "language":
        assert (tower.language, tower.tokens) == (LANGUAGE, TokensConfig())
    else:
        assert (tower.vision, tower.preprocessing) == (small_config().vision, small_config().preprocessing)
    expected = tensors(kind)
    assert list(tower.tensors) == list(expected)
    assert all(torch.equal(tower.tensors[name].read(), tensor) for name, tensor in expected.items())


def test_opening_reads_no_values(folder: Path) -> None:
    tower = read_tower(folder, "language")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"model\.safetensors"):
        tower.tensors[NORM].read()


def test_a_vision_tower_needs_no_tokenizer_and_may_hold_a_text_encoder(tmp_path: Path) -> None:
    text = {"text.embedding.weight": torch.ones(3, 4)}
    config = CONFIGS["vision"] | {"text": {"width": 4}}
    write_tower(tmp_path / "tower", "vision", config, tensors("vision") | text, None)
    tower = read_tower(tmp_path / "tower", "vision")
    assert tower.tokenizer is None
    assert tower.config["text"] == {"width": 4}
    assert torch.equal(tower.tensors["text.embedding.weight"].read(), text["text.embedding.weight"])


def test_an_existing_tower_is_replaced_only_on_demand(folder: Path) -> None:
    with pytest.raises(UsageError, match="already exists"):
        written(folder, "language")
    write_tower(folder, "language", CONFIGS["language"], tensors("language"), "{}", overwrite=True)
    assert read_tower(folder, "language").tokenizer == "{}"


@pytest.mark.parametrize("kind", ["language", "vision"])
def test_a_tower_counts_as_output_of_this_project(tmp_path: Path, kind: str) -> None:
    folder = written(tmp_path / "tower", kind)
    check_output(folder, overwrite=True)
    (folder / "config.json").write_text('{"kind": "another library"}')
    with pytest.raises(UsageError, match="is not replaced"):
        check_output(folder, overwrite=True)


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    out = tmp_path / "tower"
    spoilt = tensors("language") | {NORM: torch.zeros(3)}
    with pytest.raises(DataError, match=rf"{NORM} has shape \[3\]"):
        write_tower(out, "language", CONFIGS["language"], spoilt, "{}")
    with pytest.raises(DataError, match="needs a tokenizer"):
        write_tower(out, "language", CONFIGS["language"], tensors("language"), None)
    with pytest.raises(DataError, match="lacks tokens"):
        write_tower(out, "language", {"language": asdict(LANGUAGE)}, tensors("language"), "{}")
    assert list(tmp_path.iterdir()) == []


def test_another_kind_of_folder_is_named(folder: Path, tmp_path: Path) -> None:
    assert "is a language tower, not a vision tower: give a folder that train vision wrote" in refusal(folder, "vision")
    whole = small_checkpoint(tmp_path / "whole")
    assert folder_kind(whole) == "flamingo"
    assert "is a whole Flamingo checkpoint, not a language tower" in refusal(whole)
    assert "absent does not exist: give a language tower folder" in refusal(tmp_path / "absent")
    assert folder_kind(tmp_path / "absent") is None


def test_the_config_of_another_library_is_no_tower(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "mpt", "d_model": 32}')
    assert folder_kind(folder) is None
    assert "config.json" in refusal(folder)
    (folder / "config.json").write_text("[1]")
    assert folder_kind(folder) is None
    assert "not an object" in refusal(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert refusal(folder).endswith(f"lacks {name}")


@pytest.mark.parametrize(("changes", "message"), [
    ({"language": {**asdict(LANGUAGE), "width": "16"}}, "language.width is '16', not int"),
    ({"language": {**asdict(LANGUAGE), "width": 1 << 30}}, "LanguageConfig.width is above"),
    ({"language": {**asdict(LANGUAGE), "vocab_size": 1 << 22, "width": 1 << 18, "ff_width": 1 << 20, "layers": 1024}},
     "parameters, more than"),
    ({"language": {"width": 16}}, "language lacks"),
    ({"tokens": 5}, "tokens is 5, not an object"),
    ({"surprise": 1}, "unknown keys surprise"),
])
def test_a_config_that_is_damaged_is_refused_with_its_file_and_key(folder: Path, changes, message: str) -> None:
    change_config(folder, **changes)
    found = refusal(folder)
    assert found.startswith(f"{folder / 'config.json'}: ")
    assert message in found


def test_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    change_tensors(folder, language__norm__weight=torch.zeros(17))
    assert f"tensor {NORM} has shape [17], config.json asks for [16]" in refusal(folder)
    change_tensors(folder, language__norm__weight=torch.zeros(16, dtype=torch.int64))
    assert f"tensor {NORM} is torch.int64" in refusal(folder)
    change_tensors(folder, language__norm__weight=None)
    assert refusal(folder).endswith(f"asks for: {NORM}")
    change_tensors(folder, language__norm__weight=torch.zeros(16), surprise=torch.zeros(1))
    assert refusal(folder).endswith("does not know: surprise")


def test_damaged_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:50])
    assert "model.safetensors" in refusal(folder)
