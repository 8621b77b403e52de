"""Stage 3: where a run starts from: gates, tokenizers, presets, parts that are given."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small_model import TEXTS
from small_runs import WHOLE, files, from_checkpoint, run

from flamingo_rt import model_memory
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.parameter_count import reckon_parameters
from flamingo_rt.presets import PRESETS
from flamingo_rt.training.flamingo_start import open_flamingo_stage
from flamingo_rt.training.sharding import World
from flamingo_rt.training.tokenizer_training import train_tokenizer

pytestmark = pytest.mark.usefixtures("small")


def test_gates_start_where_they_are_asked_to(unbroken) -> None:
    model = open_flamingo_stage(WHOLE, World()).model.model
    gates = [p for name, p in model.named_parameters() if name.endswith(("attention_gate", "ff_gate", "skip_gain"))]
    assert len(gates) >= 6
    assert all(gate.eq(1.0).all() for gate in gates)
    kept = open_flamingo_stage(from_checkpoint(unbroken), World()).model.model.state_dict()
    stored = load_file(unbroken / "model.safetensors")
    assert all(torch.equal(kept[name], stored[name]) for name in stored if name.endswith("gate"))


def test_trained_gates_of_a_checkpoint_are_not_set_again(unbroken) -> None:
    kept = open_flamingo_stage(from_checkpoint(unbroken, initial_gate=0.5), World()).model.model.state_dict()
    stored = load_file(unbroken / "model.safetensors")
    gates = [name for name in stored if name.endswith(("gate", "skip_gain"))]
    assert gates
    assert all(torch.equal(kept[name], stored[name]) for name in gates)


def test_a_new_encoders_gains_are_no_gates() -> None:
    for gate, gain in ((None, 0.0), (0.5, 0.5)):
        stage = open_flamingo_stage(replace(WHOLE, gates="none", initial_gate=gate), World())
        gains = [p for name, p in stage.model.named_parameters() if name.endswith("skip_gain")]
        assert gains
        assert all(p.requires_grad and p.item() == gain for p in gains)


def test_a_new_language_model_takes_the_tokenizer_that_is_given(small, tmp_path, monkeypatch) -> None:
    given = train_tokenizer(TEXTS, 280, small.tokens)
    (tmp_path / "tokenizer.json").write_text(given.to_str())
    options = replace(WHOLE, tokenizer=str(tmp_path / "tokenizer.json"))
    assert open_flamingo_stage(options, World()).tokenizer.get_vocab() == given.get_vocab()
    assert open_flamingo_stage(WHOLE, World()).tokenizer.get_vocab() != given.get_vocab()
    smaller = replace(small, language=replace(small.language, vocab_size=270))
    monkeypatch.setitem(PRESETS, "smaller", lambda: smaller)
    with pytest.raises(DataError, match="has the token id 279, and the preset's language model 270 tokens"):
        open_flamingo_stage(replace(options, preset="smaller"), World())
    plain = train_tokenizer(TEXTS, 280, replace(small.tokens, image="<picture>"))
    (tmp_path / "tokenizer.json").write_text(plain.to_str())
    with pytest.raises(DataError, match=r"tokenizer\.json: the tokenizer has no token '<image>'"):
        open_flamingo_stage(options, World())


def test_an_unknown_preset_is_refused_also_beside_a_checkpoint(unbroken) -> None:
    with pytest.raises(UsageError, match="smal1"):
        open_flamingo_stage(from_checkpoint(unbroken, preset="smal1"), World())


@pytest.mark.parametrize("unfreeze", [(), ("embedding",), ("vision",), ("language", "embedding")])
def test_memory_is_asked_for_weights_and_for_what_is_trained(unbroken, small, monkeypatch, unfreeze) -> None:
    counts = reckon_parameters(small)
    trained = sum(counts[part] for part in ("resampler", "cross_attention", *unfreeze) if part != "embedding")
    if unfreeze == ("embedding",):
        trained += small.language.vocab_size * small.language.width
    needed = 4 * counts["total"] + 12 * trained
    for available, refused in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr(model_memory, "available_bytes", lambda available=available: available)
        with pytest.raises(DataError, match="12 bytes more each") if refused else nullcontext():
            open_flamingo_stage(from_checkpoint(unbroken, unfreeze=unfreeze), World())


def test_parts_that_would_be_frozen_with_random_weights_are_refused() -> None:
    with pytest.raises(UsageError, match=r"the language part would be frozen .*--unfreeze language"):
        open_flamingo_stage(replace(WHOLE, unfreeze=("vision",)), World())


def test_without_gates_they_are_open_and_not_trained(unbroken, tmp_path) -> None:
    run(tmp_path / "out", from_checkpoint(unbroken, gates="none"))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    gates = [tensor for name, tensor in stored.items() if name.endswith(("attention_gate", "ff_gate"))]
    assert gates
    assert all(gate.tanh().eq(1).all() for gate in gates)


def test_a_checkpoint_with_a_damaged_tokenizer_is_refused(unbroken, tmp_path) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for name, content in files(unbroken).items():
        (folder / name).write_bytes(b"{}" if name == "tokenizer.json" else content)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        open_flamingo_stage(from_checkpoint(folder), World())


def test_random_outputs_of_attention_to_pictures_are_as_loud_as_asked(unbroken) -> None:
    plain, loud = (open_flamingo_stage(replace(WHOLE, initial_output=factor), World()).model.model.state_dict()
                   for factor in (1.0, 16.0))
    outputs = [name for name in plain if name.startswith(("cross_attention.layers.", "resampler.layers."))
               and name.endswith(".output.weight")]
    assert len(outputs) >= 3
    for name, tensor in plain.items():
        assert torch.equal(loud[name], 16 * tensor if name in outputs else tensor), name
    kept = open_flamingo_stage(from_checkpoint(unbroken, initial_output=16.0), World()).model.model.state_dict()
    stored = load_file(unbroken / "model.safetensors")
    assert all(torch.equal(kept[name], stored[name]) for name in outputs)
