"""A bridge alone: taken and joined again it is the model that it came from; with other parts it is refused by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from made_encoders import PREPROCESSING, SIDE, Encoder, encoder_graph, external_checkpoint, imported, written
from safetensors.torch import load_file, save_file
from small_model import TEXTS, small_checkpoint, small_config, small_flamingo
from tokenizers import Tokenizer

from flamingo_rt.checkpoints import StoredModel, open_checkpoint, save_checkpoint, write_checkpoint
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.importing.external_encoder import import_encoder
from flamingo_rt.training.bridge_folder import join_bridge, open_bridge, take_bridge
from flamingo_rt.training.parts import open_language_part, open_vision_part
from flamingo_rt.training.tokenizer_training import train_tokenizer
from flamingo_rt.weights.lazy import in_memory

TABLES = ("language.embedding.weight", "language.head.weight", "language.head.bias")
BRIDGE = ("resampler.", "cross_attention.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``encoder``; ``model`` with it, and ``language``, the same before training: another bridge and other new rows."""
    folder = tmp_path_factory.mktemp("bridges")
    model = external_checkpoint(folder / "model", imported(folder))
    changed, generator = {}, torch.Generator().manual_seed(5)
    for name, tensor in model.tensors.items():
        values = tensor.read()
        if name.startswith(BRIDGE):
            values = torch.randn(values.shape, generator=generator)
        elif name in TABLES:
            values[new_rows(model)] = torch.randn((2, *values.shape[1:]), generator=generator)
        changed[name] = values
    write_checkpoint(folder / "language", StoredModel(model.config, model.tokenizer, in_memory(changed, folder)))
    take_bridge(folder / "model", folder / "bridge", torch.float32)
    return folder


def new_rows(model: StoredModel) -> list[int]:
    return [Tokenizer.from_str(model.tokenizer).token_to_id(text) for text in ("<image>", "<|endofchunk|>")]


def values(model: StoredModel) -> dict[str, torch.Tensor]:
    return {name: tensor.read() for name, tensor in model.tensors.items()}


def refusal(bridge: Path, vision: Path, language: Path, tokenizer: Path | None = None) -> str:
    with pytest.raises(DataError) as caught:
        join_bridge(bridge, vision, language, tokenizer)
    return str(caught.value)


def test_a_bridge_in_fp32_gives_every_tensor_back(folder: Path) -> None:
    model, joined = open_checkpoint(folder / "model"), join_bridge(folder / "bridge", folder / "encoder",
                                                                   folder / "language")
    assert joined.config == model.config
    assert json.loads(joined.tokenizer) == json.loads(model.tokenizer)
    expected, found = values(model), values(joined)
    assert {"language.head.weight", "language.head.bias"} <= set(expected)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_bridge_in_fp16_gives_it_back_within_its_rounding(folder: Path, tmp_path: Path) -> None:
    size = take_bridge(folder / "model", tmp_path / "bridge")
    assert size < 0.6 * sum(tensor.nbytes for tensor in open_bridge(folder / "bridge").tensors.values())
    model, joined = (values(found) for found in (
        open_checkpoint(folder / "model"), join_bridge(tmp_path / "bridge", folder / "encoder", folder / "language")))
    for name, tensor in model.items():
        if name.startswith(("vision.", "language.")) and name not in TABLES:
            assert torch.equal(joined[name], tensor), name
        else:
            torch.testing.assert_close(joined[name].float(), tensor.float(), rtol=2**-11, atol=1e-7)


def test_a_number_that_fp16_cannot_hold_is_refused_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    changed = values(open_checkpoint(folder / "model"))
    name = next(name for name, tensor in changed.items() if name.startswith("resampler.") and tensor.ndim == 2)
    changed[name] = changed[name].index_fill(0, torch.tensor([0]), 65520.0)
    model = open_checkpoint(folder / "model")
    write_checkpoint(tmp_path / "model", StoredModel(model.config, model.tokenizer, in_memory(changed, folder)))
    with pytest.raises(DataError, match=r"holds 65520, too large for torch\.float16: .* or use torch\.bfloat16"):
        take_bridge(tmp_path / "model", tmp_path / "bridge")
    assert not (tmp_path / "bridge").exists()
    take_bridge(tmp_path / "model", tmp_path / "bridge", torch.bfloat16)


def test_a_bridge_holds_nothing_of_the_frozen_parts(folder: Path) -> None:
    tensors = load_file(folder / "bridge" / "model.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"resampler", "cross_attention", "new_rows", "pad_row"}
    assert {name: tuple(tensor.shape)[:1] for name, tensor in tensors.items() if name.startswith("new_rows.")} == {
        f"new_rows.{name}": (2,) for name in TABLES}
    assert [tensor.ndim for name, tensor in tensors.items() if name.startswith("pad_row.")] == [1, 1, 1]
    assert {file.name for file in (folder / "bridge").iterdir()} == {"config.json", "model.safetensors"}


def test_the_padding_tokens_row_is_that_of_the_run(folder: Path, tmp_path: Path) -> None:
    """An import makes it where a tokenizer has none, with noise of the run's seed, and on another machine with other
    last bits."""
    shutil.copytree(folder / "language", tmp_path / "language")
    tensors = load_file(tmp_path / "language" / "model.safetensors")
    model = open_checkpoint(folder / "model")
    pad = Tokenizer.from_str(model.tokenizer).token_to_id(model.config.tokens.pad)
    for name in TABLES:
        tensors[name][pad] += 1 / 3
    save_file(tensors, tmp_path / "language" / "model.safetensors")
    take_bridge(folder / "model", tmp_path / "half")
    for bridge in (folder / "bridge", tmp_path / "half"):
        joined = join_bridge(bridge, folder / "encoder", tmp_path / "language")
        for name in TABLES:
            assert torch.equal(joined.tensors[name].read()[pad], model.tensors[name].read()[pad])


def test_a_bridge_of_before_is_joined_too(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "bridge", tmp_path / "bridge")
    file, config = tmp_path / "bridge" / "model.safetensors", tmp_path / "bridge" / "config.json"
    save_file({name: tensor for name, tensor in load_file(file).items() if not name.startswith("pad_row.")}, file)
    described = json.loads(config.read_text())
    del described["ids"]
    config.write_text(json.dumps(described))
    joined = values(join_bridge(tmp_path / "bridge", folder / "encoder", folder / "language"))
    assert all(torch.equal(joined[name], tensor) for name, tensor in values(open_checkpoint(folder / "model")).items())


def test_the_parts_can_be_compared_when_a_bridge_is_taken(folder: Path, tmp_path: Path) -> None:
    take_bridge(folder / "model", tmp_path / "out", vision=folder / "encoder", language=folder / "language")
    changed = values(open_checkpoint(folder / "model"))
    changed["language.norm.weight"] = changed["language.norm.weight"] + 0.1  # by unfreeze, or lora
    model = open_checkpoint(folder / "model")
    write_checkpoint(tmp_path / "model", StoredModel(model.config, model.tokenizer, in_memory(changed, folder)))
    take_bridge(tmp_path / "model", tmp_path / "other", vision=folder / "encoder")
    for parts, said in (
        ({"language": folder / "language"}, r"language has other weights .* if it is that one, .*/model was trained "
                                            "with unfreeze or lora, and its bridge cannot be joined"),
        ({"vision": imported(tmp_path, Encoder(seed=1), "encoder")}, "encoder has other weights than the encoder"),
    ):
        with pytest.raises(DataError, match=said):
            take_bridge(tmp_path / "model", tmp_path / "bridge", **parts)
    assert not (tmp_path / "bridge").exists()


def test_parts_that_are_read_once_are_not_changed(folder: Path) -> None:
    language = open_language_part(folder / "language")
    before = {name: language.tensors[name].read() for name in TABLES}
    join_bridge(folder / "bridge", folder / "encoder", folder / "language")
    joined = join_bridge(folder / "bridge", folder / "encoder", folder / "language")
    for name in TABLES:
        assert torch.equal(joined.tensors[name].read(), joined.tensors[name].read())
        assert torch.equal(language.tensors[name].read(), before[name])


def test_a_model_with_this_projects_own_encoder_and_a_tied_head(tmp_path: Path) -> None:
    config = replace(small_config(), language=replace(small_config().language, tied_head=True))
    tokenizer = train_tokenizer(TEXTS, config.language.vocab_size, config.tokens)
    save_checkpoint(tmp_path / "model", small_flamingo(config), tokenizer.to_str())
    take_bridge(tmp_path / "model", tmp_path / "bridge", torch.float32)
    joined = values(join_bridge(tmp_path / "bridge", tmp_path / "model", tmp_path / "model"))
    expected = values(open_checkpoint(tmp_path / "model"))
    assert "language.head.weight" not in expected
    assert list(joined) == list(expected)
    assert all(torch.equal(joined[name], tensor) for name, tensor in expected.items())
    other = small_flamingo(config)
    with torch.no_grad():
        next(other.vision.parameters()).mul_(1.01)
    save_checkpoint(tmp_path / "other", other, tokenizer.to_str())
    assert "other has other weights than the encoder that the bridge was trained on" in refusal(
        tmp_path / "bridge", tmp_path / "other", tmp_path / "model")


def test_the_same_encoder_by_another_exporter_is_the_same(folder: Path, tmp_path: Path) -> None:
    """Its graph has other bytes, and goes into the checkpoint as it is."""
    model = encoder_graph(Encoder(), after=[onnx.helper.make_node("Identity", ["embedding"], ["longer.name"])],
                          outputs=["longer.name"], prefix="a.longer.prefix.")
    import_encoder(written(tmp_path / "other.onnx", model), tmp_path / "other", SIDE, PREPROCESSING)
    joined = join_bridge(folder / "bridge", tmp_path / "other", folder / "language")
    assert joined.config.vision != open_checkpoint(folder / "model").config.vision
    write_checkpoint(tmp_path / "joined", joined)
    found = open_checkpoint(tmp_path / "joined").tensors["vision.graph"].read()
    assert torch.equal(found, open_vision_part(tmp_path / "other").tensors["vision.graph"].read())


# Other parts


def test_another_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    other = imported(tmp_path, Encoder(seed=1), "other")
    assert f"{other} has other weights than the encoder that the bridge was trained on: give that one" in refusal(
        folder / "bridge", other, folder / "language")
    vector = imported(tmp_path, Encoder("vector"), "vector")
    assert f"{vector} is another encoder than the bridge was trained on: features 1, not 16" in refusal(
        folder / "bridge", vector, folder / "language")


def test_an_encoder_is_known_by_its_graph_whatever_its_config_says(folder: Path, tmp_path: Path) -> None:
    other = imported(tmp_path, Encoder(seed=1), "other")
    described = json.loads((other / "config.json").read_text())
    described["vision"]["digest"] = open_checkpoint(folder / "model").config.vision.digest
    (other / "config.json").write_text(json.dumps(described))
    assert "other has other weights than the encoder" in refusal(folder / "bridge", other, folder / "language")
    shutil.copytree(folder / "encoder", tmp_path / "same")
    described["vision"]["digest"] = "0"
    described["vision"]["graph_bytes"] = open_checkpoint(folder / "model").config.vision.graph_bytes
    (tmp_path / "same" / "config.json").write_text(json.dumps(described))
    join_bridge(folder / "bridge", tmp_path / "same", folder / "language")


def test_another_preparation_of_pictures_is_refused(folder: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "encoder.onnx", encoder_graph(Encoder()))
    import_encoder(file, tmp_path / "out", SIDE, replace(PREPROCESSING, resize="squash"))
    assert "prepares pictures otherwise than the bridge was trained on: resize squash, not crop; import" in refusal(
        folder / "bridge", tmp_path / "out", folder / "language")


def test_another_language_model_is_refused(folder: Path, tmp_path: Path) -> None:
    other = small_checkpoint(tmp_path / "other")  # its head has no bias
    assert f"{other} is another language model than the bridge was trained on: head_bias False, not True" in refusal(
        folder / "bridge", folder / "encoder", other)


@pytest.mark.parametrize("name", ["language.norm.weight", "language.embedding.weight", "language.head.bias"])
def test_other_weights_of_the_language_model_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder / "language", other)
    tensors = load_file(other / "model.safetensors")
    tensors[name][20] += 0.01
    save_file(tensors, other / "model.safetensors")
    assert f"{other} has other weights than the language model that the bridge was trained on" in refusal(
        folder / "bridge", folder / "encoder", other)


def test_another_order_of_the_tokens_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder / "language", other)
    described = json.loads((other / "tokenizer.json").read_text())
    vocabulary = described["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(described))
    assert f"{other} has other tokens than the tokenizer that the bridge was trained on" in refusal(
        folder / "bridge", folder / "encoder", other)


def test_the_same_tokens_put_together_otherwise_are_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder / "language", other)
    described = json.loads((other / "tokenizer.json").read_text())
    described["normalizer"] = {"type": "Lowercase"}
    (other / "tokenizer.json").write_text(json.dumps(described))
    assert f"{other} has a tokenizer that cuts texts otherwise than the one that the bridge was trained on" in refusal(
        folder / "bridge", folder / "encoder", other)


# The folder


def test_a_bridge_is_replaced_on_demand_alone(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "bridge", tmp_path / "bridge")
    with pytest.raises(UsageError, match="--overwrite"):
        take_bridge(folder / "model", tmp_path / "bridge")
    take_bridge(folder / "model", tmp_path / "bridge", overwrite=True)
    assert open_bridge(tmp_path / "bridge").tensors["resampler.latents"].dtype == torch.float16


def test_what_is_no_bridge_is_named(folder: Path, tmp_path: Path) -> None:
    for other in ("model", "encoder"):
        assert f"{folder / other} is no bridge: give a folder that flamingo-rt bridge take wrote" in refusal(
            folder / other, folder / "encoder", folder / "language")
    assert "absent does not exist: give a bridge folder" in refusal(tmp_path / "absent", tmp_path, tmp_path)


@pytest.mark.parametrize(("change", "message"), [
    ({"vocabulary": None}, "lacks a text for vision, language, vocabulary: damaged"),
    ({"surprise": 1}, "has unknown keys surprise: damaged"),
    ({"model": {}}, "lacks"), ({"model": 5}, "is 5"), ({"kind": "other"}, "is no bridge"),
])
def test_a_damaged_description_is_named(folder: Path, tmp_path: Path, change, message: str) -> None:
    bridge = tmp_path / "bridge"
    shutil.copytree(folder / "bridge", bridge)
    described = json.loads((bridge / "config.json").read_text()) | change
    (bridge / "config.json").write_text(json.dumps(described))
    found = refusal(bridge, folder / "encoder", folder / "language")
    assert message in found
    assert str(bridge) in found


def test_damaged_tensors_are_named(folder: Path, tmp_path: Path) -> None:
    bridge = tmp_path / "bridge"
    shutil.copytree(folder / "bridge", bridge)
    tensors = load_file(bridge / "model.safetensors")
    spoilt = {**tensors, "new_rows.language.embedding.weight": torch.zeros(3, 32)}
    for changed, message in (
        (spoilt, "new_rows.language.embedding.weight has shape [3, 32]"),
        ({name: tensor for name, tensor in tensors.items() if name != "resampler.latents"}, "resampler.latents"),
        ({**tensors, "language.norm.weight": torch.zeros(32)}, "does not know: language.norm.weight"),
    ):
        save_file(changed, bridge / "model.safetensors")
        assert message in refusal(bridge, folder / "encoder", folder / "language")
    (bridge / "model.safetensors").write_bytes(b"torn")
    assert "model.safetensors" in refusal(bridge, folder / "encoder", folder / "language")


def test_a_bridge_in_the_place_of_a_part_or_a_checkpoint_is_named(folder: Path) -> None:
    joining = "is a bridge without its frozen parts: flamingo-rt bridge join makes it whole"
    for opening in (open_checkpoint, open_vision_part, open_language_part):
        with pytest.raises(DataError, match=joining):
            opening(folder / "bridge")
