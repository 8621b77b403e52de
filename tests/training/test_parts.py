"""The frozen parts of stage 3, from every kind of file that names one, and the model that they make together."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from clip_twin import NAMINGS, named, open_clip_tensors
from peer_model import WORDS, PeerModel, write_tokenizer
from small_model import TEXTS, small_checkpoint, small_config, small_flamingo
from tokenizers import Tokenizer
from torch import Tensor

from flamingo_rt.checkpoints import expected_shapes, open_checkpoint, write_checkpoint
from flamingo_rt.config import FlamingoConfig, TokensConfig
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.importing.openflamingo import OpenFlamingoFiles, open_openflamingo
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.model.language_model import LanguageModel
from flamingo_rt.presets import preset
from flamingo_rt.training.options import FlamingoOptions, RunOptions
from flamingo_rt.training.parts import JoinedParts, join_parts, open_vision_part, with_new_rows
from flamingo_rt.training.tokenizer_training import train_tokenizer
from flamingo_rt.training.towers import write_tower
from flamingo_rt.weights.lazy import in_memory

FAMILIES = ("gpt_neox", "llama", "mosaic_gpt", "mpt", "opt")
EMBEDDING, HEAD = "language.embedding.weight", "language.head.weight"
TABLES = {"gpt_neox": "gpt_neox.embed_in.weight", "llama": "model.embed_tokens.weight",
          "mosaic_gpt": "transformer.wte.weight", "mpt": "transformer.wte.weight",
          "opt": "model.decoder.embed_tokens.weight"}


def joined(vision: Path, language: Path, **options: object) -> JoinedParts:
    return join_parts(FlamingoOptions(vision=str(vision), language=str(language), **options))


def refusal(vision: Path, language: Path, error: type[Exception] = DataError, **options: object) -> str:
    with pytest.raises(error) as caught:
        joined(vision, language, **options)
    return str(caught.value)


def values(parts: JoinedParts) -> dict[str, Tensor]:
    return {name: tensor.read() for name, tensor in parts.tensors.items()}


def language_tower(path: Path, tokens: TokensConfig | None = None) -> Path:
    tokens = tokens or TokensConfig()
    tokenizer = train_tokenizer(TEXTS, 280, tokens)
    config = replace(small_config().language, vocab_size=tokenizer.get_vocab_size(), tied_head=False)
    torch.manual_seed(0)
    tensors = {f"language.{name}": tensor for name, tensor in LanguageModel(config).state_dict().items()}
    write_tower(path, "language", {"language": asdict(config), "tokens": asdict(tokens)}, tensors, tokenizer.to_str())
    return path


def vision_tower(path: Path) -> Path:
    config = small_config()
    tensors = {f"vision.{name}": tensor for name, tensor in small_flamingo().vision.state_dict().items()}
    write_tower(path, "vision", {"vision": asdict(config.vision), "preprocessing": asdict(config.preprocessing)},
                tensors | {"text.weight": torch.zeros(2)}, None)
    return path


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("towers")
    return vision_tower(folder / "vision"), language_tower(folder / "language")


@pytest.fixture(scope="module", params=FAMILIES)
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, OpenFlamingoFiles]:
    """CLIP's files, and a language model's folder without OpenFlamingo's tokens."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, PeerModel(f"{request.param}-interval1").write(folder)


# Other projects' files


def test_the_tensors_are_those_that_an_import_takes(peer: tuple[str, OpenFlamingoFiles]) -> None:
    _, files = peer
    parts = joined(files.vision, files.language)
    expected = open_openflamingo(files).model
    assert parts.config.vision == expected.config.vision
    assert parts.config.preprocessing == expected.config.preprocessing
    assert parts.config.tokens == expected.config.tokens
    assert replace(parts.config.language, head_bias=False, vocab_size=1) == replace(
        expected.config.language, head_bias=False, vocab_size=1)
    shapes = expected_shapes(parts.config)
    assert list(parts.tensors) == [name for name in shapes if name.startswith(("vision.", "language."))]
    for name, tensor in values(parts).items():
        assert tuple(tensor.shape) == shapes[name], name
        if name not in (EMBEDDING, HEAD, "language.position_table.weight"):  # the checkpoint has its own
            assert torch.equal(tensor, expected.tensors[name].read()), name


def test_known_tokens_keep_their_rows_and_new_ones_get_the_mean(peer: tuple[str, OpenFlamingoFiles]) -> None:
    family, files = peer
    parts = joined(files.vision, files.language)
    stored = PeerModel(f"{family}-interval1").tensors("language")[TABLES[family]]
    found = parts.tensors[EMBEDDING].read()
    assert torch.equal(found[:WORDS], stored)
    assert len(found) == WORDS + 3 == Tokenizer.from_str(parts.tokenizer_json).get_vocab_size()
    torch.testing.assert_close(found[WORDS:], stored.mean(0).expand(3, -1), atol=0.06 * float(stored.std()), rtol=0)
    assert len(found.unique(dim=0)) == len(found)
    tokenizer = Tokenizer.from_str(parts.tokenizer_json)
    assert parts.new_tokens == (tokenizer.token_to_id("<image>"), tokenizer.token_to_id("<|endofchunk|>"))


def test_an_untrained_join_says_what_the_language_model_alone_says(peer: tuple[str, OpenFlamingoFiles]) -> None:
    """The gates are 0, and new tokens, not yet seen, take a share like any other's."""
    _, files = peer
    parts = joined(files.vision, files.language)
    torch.manual_seed(0)
    model = Flamingo(parts.config).eval()
    tensors = values(parts)
    assert not model.load_state_dict(tensors, strict=False).unexpected_keys
    alone = LanguageModel(replace(parts.config.language, vocab_size=WORDS)).eval()
    alone.load_state_dict({
        name.removeprefix("language."): tensor[:WORDS] if name in (EMBEDDING, HEAD) else tensor
        for name, tensor in tensors.items() if name.startswith("language.")
    })
    ids = torch.tensor([[5, 7, 9, 11, 5, 7, 9]])
    pixels = torch.randn(1, 1, 3, *[parts.config.vision.image_size] * 2)
    with torch.no_grad():
        logits, _ = model(ids, torch.ones_like(ids), pixels, torch.tensor([[0]]))
        expected = alone(ids, torch.arange(7)[None])
    torch.testing.assert_close(logits[..., :WORDS], expected, atol=1e-5, rtol=0)
    surprise = logits[..., WORDS:] - expected.mean(-1, keepdim=True)
    assert surprise.abs().max() < 0.2 * expected.std()


def test_clips_three_namings_are_one_part(tmp_path: Path) -> None:
    found = []
    for number, naming in enumerate(NAMINGS):
        file = tmp_path / f"clip{number}.pt"
        torch.save(named(naming, open_clip_tensors()), file)
        part = open_vision_part(file)
        found.append((part.config, part.preprocessing, {name: tensor.read() for name, tensor in part.tensors.items()}))
    for config, preprocessing, tensors in found[1:]:
        assert (config, preprocessing, list(tensors)) == (found[0][0], found[0][1], list(found[0][2]))
        assert all(torch.equal(tensor, found[0][2][name]) for name, tensor in tensors.items())


# Folders of this project


def test_towers_become_one_model(towers: tuple[Path, Path]) -> None:
    parts = joined(*towers)
    assert list(parts.tensors) == [
        name for name in expected_shapes(parts.config) if name.startswith(("vision.", "language."))
    ]
    assert (parts.config.vision, parts.config.preprocessing) == (small_config().vision, small_config().preprocessing)
    expected = small_flamingo().state_dict()["vision.stem.0.weight"]
    assert torch.equal(parts.tensors["vision.stem.0.weight"].read(), expected)
    tiny = preset("tiny")
    assert (parts.config.prompts, parts.config.max_visuals) == (tiny.prompts, tiny.max_visuals)


def test_the_new_tokens_of_a_tower_are_made_anew_and_no_others(towers: tuple[Path, Path]) -> None:
    """They were in no text of stage 2, which only taught it not to say them."""
    parts = joined(*towers)
    torch.manual_seed(0)
    before = LanguageModel(parts.config.language).state_dict()
    for name in (EMBEDDING, HEAD):
        found, stored = parts.tensors[name].read(), before[name.removeprefix("language.")]
        changed = (found != stored).any(1).nonzero().flatten().tolist()
        assert changed == sorted(parts.new_tokens)
        others = torch.ones(len(stored), dtype=torch.bool)
        others[changed] = False
        mean = stored[others].mean(0).expand(2, -1)
        torch.testing.assert_close(found[changed], mean, atol=0.06 * float(stored.std()), rtol=0)


def test_a_towers_tokenizer_without_the_new_tokens_gets_them(towers: tuple[Path, Path], tmp_path: Path) -> None:
    tower = language_tower(tmp_path / "tower", TokensConfig(image="", end_of_chunk=""))
    parts = joined(towers[0], tower)
    tokenizer = Tokenizer.from_str(parts.tokenizer_json)
    size = tokenizer.get_vocab_size()
    assert (tokenizer.token_to_id("<image>"), tokenizer.token_to_id("<|endofchunk|>")) == (size - 2, size - 1)
    assert (parts.config.tokens, parts.config.language.vocab_size) == (TokensConfig(), size)
    assert parts.tensors[EMBEDDING].read().shape[0] == parts.tensors[HEAD].read().shape[0] == size


def test_parts_of_a_whole_checkpoint_stay_as_they_are(towers: tuple[Path, Path], tmp_path: Path) -> None:
    whole = small_checkpoint(tmp_path / "whole")
    expected = open_checkpoint(whole)
    parts = joined(whole, whole)
    assert (parts.config.vision, parts.config.language) == (expected.config.vision, expected.config.language)
    assert all(torch.equal(tensor, expected.tensors[name].read()) for name, tensor in values(parts).items())
    assert set(joined(towers[0], whole).tensors) == set(joined(whole, towers[1]).tensors) == set(parts.tensors)


def test_tokens_that_an_import_shut_out_can_be_learnt(tmp_path: Path) -> None:
    """The head of this import has no rows for the new tokens: as targets they would cost 30,000 each."""
    files = PeerModel("llama-interval1").write(tmp_path)
    imported = open_openflamingo(files).model
    write_checkpoint(tmp_path / "imported", imported)
    shut = int((imported.tensors["language.head.bias"].read() < -1e4).sum())
    parts = joined(tmp_path / "imported", tmp_path / "imported")
    bias, weight = (parts.tensors[f"language.head.{name}"].read() for name in ("bias", "weight"))
    assert bias[list(parts.new_tokens)].abs().max() == 0
    assert int((bias < -1e4).sum()) == shut - 2  # padding, for instance, is never an answer
    known = imported.tensors[HEAD].read()[:WORDS]
    assert torch.equal(weight[:WORDS], known)
    mean = known.mean(0).expand(2, -1)
    torch.testing.assert_close(weight[list(parts.new_tokens)], mean, atol=0.06 * float(known.std()), rtol=0)


# Sizes of what is new


def test_widths_follow_the_parts(towers: tuple[Path, Path]) -> None:
    plain, projected = joined(*towers), joined(*towers, preset="flamingo-3b")
    assert plain.config.cross_attention == preset("tiny").cross_attention  # takes latents as they are
    assert projected.config.cross_attention == replace(
        preset("flamingo-3b").cross_attention, media_width=small_config().language.width)
    openflamingo = joined(*towers, preset="openflamingo-3b").config
    assert openflamingo.resampler == replace(preset("openflamingo-3b").resampler, input_projection=True)


def test_an_interval_beyond_the_language_models_layers_is_refused(towers: tuple[Path, Path]) -> None:
    assert "the preset openflamingo-9b does not fit" in refusal(*towers, preset="openflamingo-9b")


# One part from nothing


def test_a_part_that_is_not_named_has_the_presets_sizes(towers: tuple[Path, Path]) -> None:
    def learn(config: FlamingoConfig) -> Tokenizer:
        return train_tokenizer(TEXTS, config.language.vocab_size, config.tokens)

    tiny = preset("tiny")
    only_vision = join_parts(FlamingoOptions(vision=str(towers[0])), learn)
    assert (only_vision.config.language, only_vision.new_tokens) == (tiny.language, ())
    assert all(name.startswith("vision.") for name in only_vision.tensors)
    only_language = join_parts(FlamingoOptions(language=str(towers[1])))
    assert (only_language.config.vision, len(only_language.new_tokens)) == (tiny.vision, 2)
    assert all(name.startswith("language.") for name in only_language.tensors)
    assert only_vision.config.name == only_language.config.name == "flamingo"  # tiny is the whole alone
    with pytest.raises(UsageError, match="no language model is given"):
        join_parts(FlamingoOptions(vision=str(towers[0])))


# What is refused


def test_a_folder_of_the_other_kind_is_named(towers: tuple[Path, Path], tmp_path: Path) -> None:
    vision, language = towers
    assert f"{language} is a language tower, not a vision tower" in refusal(language, language)
    assert f"{vision} is a vision tower, not a language tower" in refusal(vision, vision)
    assert str(tmp_path / "absent") in refusal(tmp_path / "absent", language)
    assert str(tmp_path / "absent") in refusal(vision, tmp_path / "absent")


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(
    towers: tuple[Path, Path], peer: tuple[str, OpenFlamingoFiles], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_tokenizer(other, WORDS + 1)
    message = refusal(towers[0], peer[1].language, tokenizer=str(other))
    assert f"the tokenizer in {other} has {WORDS + 1} tokens, tensor {TABLES[peer[0]]} has {WORDS} rows" in message


def test_a_towers_own_tokenizer_must_be_there_and_fit(towers: tuple[Path, Path], tmp_path: Path) -> None:
    tower = language_tower(tmp_path / "tower")
    assert "leave tokenizer" in refusal(towers[0], tower, UsageError, tokenizer=str(tmp_path))
    (tower / "tokenizer.json").write_text(train_tokenizer(TEXTS, 290, TokensConfig()).to_str())
    assert "290 tokens, the model knows 280" in refusal(towers[0], tower)
    (tower / "tokenizer.json").unlink()
    assert "lacks tokenizer.json" in refusal(towers[0], tower)


def test_a_special_token_that_the_tokenizer_lacks_is_named(towers: tuple[Path, Path], tmp_path: Path) -> None:
    tower = language_tower(tmp_path / "tower")
    config = json.loads((tower / "config.json").read_text())
    config["tokens"]["eos"] = "<end>"
    (tower / "config.json").write_text(json.dumps(config))
    assert "no token '<end>'" in refusal(towers[0], tower)


def test_quantized_weights_are_refused(towers: tuple[Path, Path], tmp_path: Path) -> None:
    peer = PeerModel("opt-interval1")
    files = peer.write(tmp_path)
    file = next(files.language.glob("*.bin"))
    tensors = torch.load(file)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    torch.save({**tensors, name: tensors[name].to(torch.int8)}, file)
    assert "not floating point" in refusal(towers[0], files.language)


# Rows


def test_nothing_is_read_until_it_is_asked_for(towers: tuple[Path, Path], tmp_path: Path) -> None:
    tower = language_tower(tmp_path / "tower")
    parts = joined(towers[0], tower)
    (tower / "model.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"model\.safetensors"):
        parts.tensors[EMBEDDING].read()


def test_new_rows_depend_on_the_seed_alone(towers: tuple[Path, Path]) -> None:
    first, again = (joined(*towers).tensors[EMBEDDING].read() for _ in range(2))
    other = joined(*towers, run=RunOptions(seed=1)).tensors[EMBEDDING].read()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_table_is_cut_or_extended_to_its_tokens() -> None:
    stored = torch.arange(12.0).view(6, 2)
    table = in_memory({"table": stored}, Path("file"))["table"]
    cut = with_new_rows(table, 4, [3], 0).read()
    assert torch.equal(cut[:3], stored[:3])
    torch.testing.assert_close(cut[3], stored[:3].mean(0), atol=0.1, rtol=0)
    longer = with_new_rows(table, 8, [], 0)
    assert longer.shape == (8, 2)
    torch.testing.assert_close(longer.read()[6:], stored.mean(0).expand(2, -1), atol=0.2, rtol=0)
    bias = with_new_rows(in_memory({"bias": stored[:, 0]}, Path("file"))["bias"], 7, [6], 0).read()
    assert torch.equal(bias[:6], stored[:, 0])
    assert bias[6] == pytest.approx(5.0, abs=0.2)
