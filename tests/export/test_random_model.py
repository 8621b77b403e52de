"""Models with random weights: the same each time, drawn as they are read, and usable as they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_model import small_config

from flamingo_rt.checkpoints import expected_shapes
from flamingo_rt.config import TokensConfig
from flamingo_rt.errors import UsageError
from flamingo_rt.export.random_model import byte_tokenizer, random_model
from flamingo_rt.presets import PRESETS, preset
from flamingo_rt.processing.tokenizer import TextTokenizer


def test_a_model_has_the_tensors_of_its_configuration_and_loads() -> None:
    config = small_config()
    stored = random_model(config)
    assert {name: tensor.shape for name, tensor in stored.tensors.items()} == expected_shapes(config)
    model = stored.load()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_the_seed_decides_every_tensor_by_its_name() -> None:
    first, again, other = (random_model(small_config(), seed).tensors for seed in (0, 0, 1))
    name = "language.embedding.weight"
    assert torch.equal(first[name].read(), again[name].read())
    assert torch.equal(first[name].read(), first[name].read())  # drawn again, not on from there
    assert not torch.equal(first[name].read(), other[name].read())
    alike = (first[f"language.layers.{layer}.ff.up.weight"].read() for layer in range(2))
    assert not torch.equal(*alike)


def test_signals_neither_vanish_nor_explode() -> None:
    model = random_model(small_config()).load().eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        pixels = torch.randn(2, 1, 3, 32, 32)
        rows = torch.zeros(1, 1, dtype=torch.long)
        logits = [model(ids, torch.ones_like(ids), pixels[i : i + 1], rows)[0] for i in range(2)]
    assert all(torch.isfinite(values).all() and 0.01 < values.std() < 100 for values in logits)
    assert (logits[0] - logits[1]).abs().max() > 1e-4  # the gates are open: the picture reaches the logits


def test_matrices_have_a_fan_in_initialisation() -> None:
    weight = random_model(preset("tiny")).tensors["language.layers.0.ff.down.weight"].read()
    assert weight.std().item() == pytest.approx(weight.shape[1] ** -0.5, rel=0.05)


@pytest.mark.parametrize("name", PRESETS)
def test_every_presets_tokenizer_reads_what_the_model_is_asked(name: str, tmp_path) -> None:
    config = preset(name)
    (tmp_path / "tokenizer.json").write_text(byte_tokenizer(config.language.vocab_size, config.tokens).to_str())
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json", config.tokens, config.language.vocab_size)
    text = f"{config.tokens.image}Output: ein Bär 🐻{config.tokens.end_of_chunk}"
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.image_id
    assert ids[-1] == tokenizer.end_of_chunk_id
    assert tokenizer.decode(ids) == "Output: ein Bär 🐻"
    assert max(ids) < config.language.vocab_size


def test_an_external_encoder_has_no_random_graph() -> None:
    with pytest.raises(UsageError, match="vision encoder of the preset photos is another project's graph"):
        random_model(preset("photos"))


def test_the_tokenizer_has_as_many_tokens_as_the_model_knows() -> None:
    tokenizer = byte_tokenizer(300, TokensConfig())
    assert tokenizer.get_vocab_size() == 300
    assert len({tokenizer.id_to_token(number) for number in range(300)}) == 300


def test_a_vocabulary_too_small_for_bytes_says_what_it_needs() -> None:
    config = small_config()
    with pytest.raises(UsageError, match="vocab_size is 260: bytes and special tokens are 261"):
        random_model(replace(config, language=replace(config.language, vocab_size=260)))
    assert byte_tokenizer(261, TokensConfig()).get_vocab_size() == 261


def test_tensors_are_only_read_when_they_are_asked_for(monkeypatch) -> None:
    monkeypatch.setattr(np.random, "default_rng", lambda *arguments: pytest.fail("drawn"))
    random_model(preset("flamingo-80b"))
