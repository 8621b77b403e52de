"""An OpenFlamingo model put together from its three sources: names, sizes, vocabulary, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peer_model import PeerModel, write_tokenizer
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.peers.random_weights import random_tensor
from flamingo_rt.checkpoints import StoredModel, expected_shapes
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.importing import frozen_parts, openflamingo
from flamingo_rt.importing.openflamingo import Imported, OpenFlamingoFiles, open_openflamingo
from flamingo_rt.presets import preset
from flamingo_rt.weights.lazy import LazyTensor

PARTS = ("checkpoint", "vision", "language")
TOKENS = 63  # w0 to w59, end of chunk, image, padding
GATED = "lang_encoder.gated_cross_attn_layers"
IN_LAYERS = "lang_encoder.gpt_neox.layers.{}.gated_cross_attn_layer"
EMBEDDING, HEAD = "gpt_neox.embed_in.weight", "embed_out.weight"


class Sources:
    """The three sources of a small model with their tensors in memory, where a test can rename, change or drop them.

    ``config`` is the language model's config.json; ``reads`` names every tensor whose values were read.
    """

    def __init__(self, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        peer = PeerModel(name)
        self.folder, self.config, self.reads = folder, dict(peer.about["language_config"]), []
        self.paths = {part: folder / part for part in PARTS}
        self.language = self.paths["language"]
        self.language.mkdir(parents=True)
        write_tokenizer(self.language)
        self.parts: dict[str, dict[str, LazyTensor]] = {part: {} for part in PARTS}
        for part in PARTS:
            for tensor, shape in peer.about["files"][part].items():
                self.put(part, tensor, shape)
        by_path = {self.paths[part]: self.parts[part] for part in PARTS}
        for module in (openflamingo, frozen_parts):
            monkeypatch.setattr(module, "open_weights", lambda path: dict(by_path[path]))

    def put(self, part: str, name: str, shape: list[int] | tuple[int, ...], seed: int = 0, dtype=torch.float32) -> None:
        """Add or replace a tensor; its values come from seed, name and shape."""

        def read() -> Tensor:
            self.reads.append(name)
            return torch.from_numpy(random_tensor(seed, name, shape)).to(dtype)

        self.parts[part][name] = LazyTensor(tuple(shape), dtype, self.paths[part], read, name)

    def drop(self, part: str, pattern: str) -> None:
        names = [name for name in self.parts[part] if re.search(pattern, name)]
        assert names
        for name in names:
            del self.parts[part][name]

    def rename(self, part: str, change: Callable[[str], str]) -> None:
        """Give tensors other names; they keep their values."""
        renamed = {change(name): tensor for name, tensor in self.parts[part].items()}
        assert set(renamed) != set(self.parts[part])
        self.parts[part].clear()
        self.parts[part].update(renamed)

    def value(self, part: str, name: str) -> Tensor:
        return self.parts[part][name].read()

    def open(self, **options) -> Imported:
        (self.language / "config.json").write_text(json.dumps(self.config))
        return open_openflamingo(OpenFlamingoFiles(*(self.paths[part] for part in PARTS), **options))

    def refusal(self, **options) -> str:
        with pytest.raises(DataError) as caught:
            self.open(**options)
        return str(caught.value)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Sources]:
    """The sources of a peer's case."""
    return lambda name: Sources(name, tmp_path / name, monkeypatch)


@pytest.fixture
def sources(make: Callable[[str], Sources]) -> Sources:
    """GPT-NeoX with four layers, a gated one before each; embedding and head are in the checkpoint."""
    return make("gpt_neox-interval1")


def values(model: StoredModel) -> dict[str, Tensor]:
    return {name: tensor.read() for name, tensor in model.tensors.items()}


def assert_same(one: StoredModel, other: StoredModel) -> None:
    assert one.config == other.config
    ours, theirs = values(one), values(other)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# Names


def test_every_tensor_of_the_model_is_there_in_its_shape(sources: Sources) -> None:
    model = sources.open().model
    assert {name: tensor.shape for name, tensor in model.tensors.items()} == expected_shapes(model.config)
    assert all(tuple(tensor.shape) == model.tensors[name].shape for name, tensor in values(model).items())
    assert Tokenizer.from_str(model.tokenizer).get_vocab_size() == TOKENS


def test_nothing_is_read_while_the_model_is_opened(make: Callable[[str], Sources]) -> None:
    for name in ("gpt_neox-interval1", "llama-interval1"):  # the second has a head with too few rows
        sources = make(name)
        model = sources.open().model
        stored = model.stored_as(torch.bfloat16)
        assert sources.reads == []
        next(iter(stored.tensors.values())).read()
        assert len(sources.reads) == 1


def test_the_gated_layers_have_two_names(sources: Sources) -> None:
    listed = sources.open().model
    sources.rename("checkpoint", lambda name: re.sub(
        rf"{re.escape(GATED)}\.(\d+)", lambda match: IN_LAYERS.format(match[1]), name
    ))
    assert not any(name.startswith(GATED) for name in sources.parts["checkpoint"])
    assert_same(sources.open().model, listed)


@pytest.mark.parametrize("wrapper", ["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"])
def test_the_names_of_wrappers_are_left_out(sources: Sources, wrapper: str) -> None:
    plain = sources.open().model

    def wrapped(name: str) -> str:
        name = re.sub(r"(layers\.\d+)\.", rf"\1.{wrapper}.", name)
        return f"{wrapper}.{wrapper}.{name}" if "perceiver" in name else f"lang_encoder.{wrapper}.{name[13:]}"

    sources.rename("checkpoint", wrapped)
    assert_same(sources.open().model, plain)


@pytest.mark.parametrize("layer", ["gpt_neox.layers.2.decoder_layer", "old_decoder_blocks.2", "gpt_neox.layers.2"])
def test_layers_that_the_checkpoint_has_go_before_the_language_models(sources: Sources, layer: str) -> None:
    name = f"lang_encoder.{layer}.mlp.dense_h_to_4h.weight"
    sources.put("checkpoint", name, (128, 32), seed=5)
    found = values(sources.open().model)
    assert torch.equal(found["language.layers.2.ff.up.weight"], sources.value("checkpoint", name))
    original = sources.value("language", "gpt_neox.layers.1.mlp.dense_h_to_4h.weight")
    assert torch.equal(found["language.layers.1.ff.up.weight"], original)


def test_a_decoder_saved_without_its_outer_name_is_found(sources: Sources) -> None:
    usual = sources.open().model
    sources.drop("language", HEAD)
    sources.rename("language", lambda name: name.removeprefix("gpt_neox."))
    assert_same(sources.open().model, usual)


def test_a_tokenizer_of_another_folder_is_taken(sources: Sources) -> None:
    elsewhere = sources.folder / "tokenizer"
    elsewhere.mkdir()
    write_tokenizer(elsewhere)
    (sources.language / "tokenizer.json").unlink()
    assert "--tokenizer" in sources.refusal()
    for path in (elsewhere, elsewhere / "tokenizer.json"):
        assert sources.open(tokenizer=path).model.config.tokens.eos == "w2"


# Sizes


@pytest.mark.parametrize(
    ("name", "interval", "layers"),
    [("mpt-interval1", 1, (0, 1, 2, 3)), ("opt-interval2", 2, (1, 3)), ("llama-interval4", 4, (3,))],
)
def test_the_interval_is_where_the_gated_layers_stand(make, name: str, interval: int, layers: tuple) -> None:
    config = make(name).open().model.config
    assert (config.cross_attention.interval, config.cross_attention.offset) == (interval, "last")
    assert config.cross_layers == layers


def test_pictures_are_prepared_as_the_encoders_configuration_says(sources: Sources) -> None:
    assert sources.open().model.config.preprocessing == preset("openflamingo-3b").preprocessing
    sources.paths["vision"].mkdir()
    stated = {"model_cfg": {"vision_cfg": {"head_width": 16}}, "preprocess_cfg": {"mean": [0.5, 0.25, 0.125]}}
    (sources.paths["vision"] / "open_clip_config.json").write_text(json.dumps(stated))
    config = sources.open().model.config
    assert (config.preprocessing.mean, config.vision.heads) == ((0.5, 0.25, 0.125), 4)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_missing_gated_layer_is_an_error_that_names_those_there(sources: Sources, layer: int) -> None:
    sources.drop("checkpoint", rf"gated_cross_attn_layers\.{layer}\.")
    message = sources.refusal()
    assert str(sources.paths["checkpoint"]) in message
    assert f"stands before layers {', '.join(str(i) for i in range(4) if i != layer)}" in message


def test_a_language_model_with_more_layers_is_an_error(sources: Sources) -> None:
    sources.config["num_hidden_layers"] = 5
    message = sources.refusal()
    assert "before layers 0, 1, 2, 3" in message
    assert "5 layers" in message


def test_a_checkpoint_of_another_language_model_is_told_from_a_file_of_another_kind(sources: Sources) -> None:
    sources.drop("checkpoint", "gated_cross_attn")
    assert "has no gated cross-attention under gpt_neox.layers" in sources.refusal()


def test_tensors_of_the_checkpoint_that_nothing_reads_are_reported(sources: Sources) -> None:
    assert not sources.open().notes
    sources.put("checkpoint", "vision_encoder.conv1.weight", [2, 2])  # CLIP's, unchanged
    assert not sources.open().notes
    sources.put("checkpoint", "foo.bar", [3])
    assert "has 1 tensors that are not part of the model: foo.bar" in sources.open().notes[0]


def test_a_preset_of_another_kind_is_a_usage_error(sources: Sources) -> None:
    with pytest.raises(UsageError, match="flamingo-3b is not an OpenFlamingo model; known: openflamingo-3b"):
        sources.open(preset="flamingo-3b")


def test_a_checkpoint_without_a_resampler_is_no_openflamingo(sources: Sources) -> None:
    sources.drop("checkpoint", "perceiver")
    message = sources.refusal()
    assert message.startswith(f"{sources.paths['checkpoint']} is not an OpenFlamingo checkpoint")
    assert "perceiver.latents" in message
    assert next(iter(sources.parts["checkpoint"])) in message


def test_embeddings_of_a_pictures_place_are_refused(sources: Sources) -> None:
    sources.put("checkpoint", "perceiver.media_time_embs", (4, 1, 64))
    assert f"{sources.paths['checkpoint']}: perceiver.media_time_embs" in sources.refusal()


def test_frame_embeddings_are_the_resamplers_time_embeddings(sources: Sources) -> None:
    assert sources.open().model.config.resampler.max_frames == 0
    sources.put("checkpoint", "perceiver.frame_embs", (6, 64))
    model = sources.open().model
    assert model.config.resampler.max_frames == 6
    assert torch.equal(model.tensors["resampler.time"].read(), sources.value("checkpoint", "perceiver.frame_embs"))


def test_an_encoder_of_another_width_than_the_resampler_is_refused(sources: Sources) -> None:
    for name, tensor in list(sources.parts["vision"].items()):
        sources.put("vision", name, [{64: 128, 192: 384}.get(size, size) for size in tensor.shape])
    message = sources.refusal()
    assert message.startswith(f"{sources.paths['vision']}: the encoder's width is 128")
    assert str(sources.paths["checkpoint"]) in message
    assert "64" in message


@pytest.mark.parametrize("width", [64, 256])
def test_a_language_model_of_another_width_than_the_gated_layers_is_refused(sources: Sources, width: int) -> None:
    sources.config["hidden_size"] = width
    sources.drop("checkpoint", "embed_")
    for name, tensor in list(sources.parts["language"].items()):
        sources.put("language", name, [{32: width, 96: 3 * width, 60: TOKENS}.get(size, size) for size in tensor.shape])
    message = sources.refusal()
    assert message.startswith(f"{sources.paths['checkpoint']}: tensor gated_cross_attn_layers.0.attn.norm.weight")
    assert "has shape [32]" in message
    assert f"needs [{width}]" in message


def test_weights_of_another_width_than_their_configuration_are_refused(sources: Sources) -> None:
    sources.put("checkpoint", f"lang_encoder.{EMBEDDING}", (64, 48))
    message = sources.refusal()
    assert f"tensor {EMBEDDING} has shape [64, 48]" in message
    assert "needs [64, 32]" in message


@pytest.mark.parametrize(
    ("part", "name"),
    [("language", "gpt_neox.layers.3.attention.dense.bias"), ("checkpoint", "perceiver.layers.0.0.to_kv.weight"),
     ("checkpoint", "perceiver.layers.2.0.to_q.weight"), ("vision", "visual.transformer.resblocks.1.ln_1.weight"),
     ("vision", "visual.ln_pre.bias"), ("checkpoint", "lang_encoder.gated_cross_attn_layers.3.ff_gate")],
)
def test_a_missing_tensor_is_named_with_the_file(sources: Sources, part: str, name: str) -> None:
    sources.drop(part, f"{re.escape(name)}$")
    message = sources.refusal()
    assert message.startswith(f"{sources.paths[part]} lacks tensor {name.removeprefix('lang_encoder.')}")


@pytest.mark.parametrize(
    ("part", "layer"),
    [("checkpoint", "perceiver.layers.2"), ("checkpoint", "perceiver.layers.0"),
     ("vision", "visual.transformer.resblocks.1"), ("vision", "visual.transformer.resblocks.0")],
)
def test_a_missing_layer_below_others_is_named_with_the_file(sources: Sources, part: str, layer: str) -> None:
    sources.drop(part, rf"^{re.escape(layer)}\.")
    message = sources.refusal()
    assert message.startswith(f"{sources.paths[part]} lacks tensor {layer}.")


@pytest.mark.parametrize("number", ["5000000000", "400000000", "9" * 5000])
@pytest.mark.parametrize(
    ("part", "layers"), [("checkpoint", "perceiver.layers"), ("vision", "visual.transformer.resblocks"),
                         ("checkpoint", GATED), ("language", "gpt_neox.layers")],
)
def test_a_layer_of_a_monstrous_number_is_refused_at_once(
    sources: Sources, part: str, layers: str, number: str
) -> None:
    sources.put(part, f"{layers}.{number}.weight", [32])
    assert str(sources.paths[part]) in sources.refusal()


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("checkpoint", f"{GATED}.1.ff.1.weight"),
        ("checkpoint", "perceiver.layers.2.0.to_q.weight"),
        ("checkpoint", "perceiver.latents"),
        ("checkpoint", f"lang_encoder.{EMBEDDING}"),
        ("checkpoint", f"lang_encoder.{HEAD}"),
        ("vision", "visual.transformer.resblocks.1.attn.in_proj_weight"),
        ("language", "gpt_neox.layers.1.attention.query_key_value.weight"),
    ],
)
def test_integers_are_refused(sources: Sources, part: str, name: str) -> None:
    sources.put(part, name, sources.parts[part][name].shape, dtype=torch.int8)
    message = sources.refusal()
    assert message.startswith(f"{sources.paths[part]}: tensor {name.removeprefix('lang_encoder.')} is int8")
    assert "quantized" in message


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("language", "gpt_neox.layers.2.attention.query_key_value.gate"),
        ("language", "gpt_neox.layers.2.mlp.dense_h_to_4h.lora_A.weight"),
        ("language", "gpt_neox.layers.4.input_layernorm.weight"),
        ("language", "gpt_neox.embed_positions.weight"),
        ("checkpoint", "perceiver.layers.0.0.q_bias"),
        ("checkpoint", "perceiver.projection.weight"),
        ("checkpoint", f"{GATED}.1.attn.to_q.bias"),
        ("checkpoint", "lang_encoder.gpt_neox.layers.1.mlp.lora_B.weight"),
        ("vision", "visual.conv1.bias"),
        ("vision", "visual.transformer.resblocks.0.ls_1.gamma"),
        ("vision", "visual.transformer.resblocks.2.attn.q_norm.weight"),
        ("vision", "visual.patchnorm_pre_ln.weight"),
    ],
)
def test_a_tensor_that_would_be_left_out_is_refused(sources: Sources, part: str, name: str) -> None:
    sources.put(part, name, [32])
    message = sources.refusal()
    assert message.startswith(f"{sources.paths[part]}: tensor {name.removeprefix('lang_encoder.')} has no place in")


@pytest.mark.parametrize("kind", ["mpt", "mosaic_gpt"])
@pytest.mark.parametrize("name", ["wpe.weight", "norm_f.bias", "ln_f.bias", "blocks.0.attn.Wqkv.bias"])
def test_a_tensor_that_mpt_has_no_place_for_is_refused(make: Callable[[str], Sources], kind: str, name: str) -> None:
    sources = make(f"{kind}-interval4")
    sources.put("language", f"transformer.{name}", [48])
    expected = f"{sources.language}: tensor transformer.{name} has no place in the language model (MPT)"
    assert expected in sources.refusal()


def test_a_projection_behind_the_encoder_is_left_out(make: Callable[[str], Sources]) -> None:
    for case, names in (
        ("gpt_neox-interval1", ("visual.proj", "visual.ln_post.weight", "visual.ln_post.bias", "logit_scale")),
        ("gpt_neox-interval2", ("vision_model.embeddings.position_ids", "vision_model.post_layernorm.weight",
                                "vision_model.post_layernorm.bias", "visual_projection.weight")),
    ):
        sources = make(case)
        plain = sources.open().model
        for name in names:
            sources.put("vision", name, [3], seed=9)
        assert_same(sources.open().model, plain)


def test_tensors_that_are_no_weights_are_left_out(sources: Sources) -> None:
    plain = sources.open().model
    for name in ("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"):
        sources.put("language", f"gpt_neox.layers.1.{name}", [1])
    sources.put("language", "value_head.weight", [1, 32])
    assert_same(sources.open().model, plain)


def test_an_empty_tensor_is_refused(sources: Sources) -> None:
    for name in (f"{GATED}.0.ff.1.weight", "perceiver.latents"):
        sources.put("checkpoint", name, (0, 0))
        assert f"tensor {name.removeprefix('lang_encoder.')} is empty" in sources.refusal()


# Vocabulary


def test_the_checkpoints_embedding_is_taken_whole(sources: Sources) -> None:
    model = sources.open().model
    assert model.config.language.vocab_size == 64  # one row more than there are tokens
    embedding = sources.value("checkpoint", f"lang_encoder.{EMBEDDING}")
    assert torch.equal(model.tensors["language.embedding.weight"].read(), embedding)


def test_the_language_models_embedding_is_cut_to_the_tokenizer(sources: Sources) -> None:
    sources.drop("checkpoint", "embed_")
    for name in (EMBEDDING, HEAD):
        sources.put("language", name, (80, 32))
    imported = sources.open()
    assert imported.model.config.language.vocab_size == TOKENS
    for ours, theirs in (("embedding", EMBEDDING), ("head", HEAD)):
        found = imported.model.tensors[f"language.{ours}.weight"].read()
        assert torch.equal(found, sources.value("language", theirs)[:TOKENS])


def test_an_embedding_with_too_few_rows_is_refused(sources: Sources) -> None:
    sources.put("checkpoint", f"lang_encoder.{EMBEDDING}", (TOKENS - 1, 32))
    message = sources.refusal()
    assert f"has {TOKENS} tokens" in message
    assert f"the checkpoint has {TOKENS - 1} rows" in message
    sources.drop("checkpoint", EMBEDDING)
    message = sources.refusal()
    assert str(sources.paths["language"]) in message
    assert EMBEDDING in message
    assert "has 60 rows" in message


def test_the_checkpoints_head_goes_before_the_language_models(sources: Sources) -> None:
    imported = sources.open()
    assert (imported.notes, imported.model.config.language.head_bias) == ((), False)
    head = imported.model.tensors["language.head.weight"].read()
    assert torch.equal(head, sources.value("checkpoint", f"lang_encoder.{HEAD}"))


def test_a_head_that_was_not_trained_is_noted(sources: Sources) -> None:
    sources.drop("checkpoint", re.escape(HEAD))
    sources.put("language", HEAD, (80, 32))
    imported = sources.open()
    assert len(imported.notes) == 1
    for part in (HEAD, "<image>", "<|endofchunk|>", "never trained"):
        assert part in imported.notes[0]
    assert not imported.model.config.language.head_bias
    head = imported.model.tensors["language.head.weight"].read()
    assert torch.equal(head, sources.value("language", HEAD)[:64])


def test_tokens_that_the_head_has_no_row_for_are_never_chosen(make: Callable[[str], Sources]) -> None:
    sources = make("llama-interval1")  # the embedding is in the checkpoint, the head is not
    imported = sources.open()
    assert len(imported.notes) == 1
    for part in ("lm_head.weight", "60 rows", "64 tokens", "<image>", "<|endofchunk|>"):
        assert part in imported.notes[0]
    model = imported.model
    assert model.config.language.head_bias
    weight, bias = (model.tensors[f"language.head.{part}"].read() for part in ("weight", "bias"))
    assert torch.equal(weight[:60], sources.value("language", "lm_head.weight"))
    assert not weight[60:].any()
    assert torch.equal(bias[:60], torch.zeros(60))
    assert torch.isfinite(bias.half()).all()
    tokens = torch.tensor([[3, 61, 5, 60]])
    with torch.no_grad():
        logits, _ = model.load()(tokens, torch.zeros_like(tokens))
    assert (logits[..., 60:] < logits[..., :60].amin() - 1000).all()


def test_a_tied_head_is_not_looked_for(make: Callable[[str], Sources]) -> None:
    model = make("mpt-interval1").open().model
    assert model.config.language.tied_head
    assert not any("head" in name for name in model.tensors)


def test_a_head_that_is_nowhere_is_named(make: Callable[[str], Sources]) -> None:
    sources = make("llama-interval1")
    sources.drop("language", "lm_head")
    assert "lacks tensor lm_head.weight" in sources.refusal()


def test_the_end_of_text_is_the_language_models_where_the_tokenizer_names_none(sources: Sources) -> None:
    (sources.language / "tokenizer_config.json").unlink()
    sources.config["eos_token_id"] = 7
    assert sources.open().model.config.tokens.eos == "w7"
    sources.config["eos_token_id"] = [2, 3]
    imported = sources.open()
    assert imported.model.config.tokens.eos == "w2"
    assert len(imported.model.config.tokens.stop) == 1
    for value in ("2", -1, True, None):
        sources.config["eos_token_id"] = value
        assert "which token ends a text" in sources.refusal()


# Names of released models


def test_a_model_of_its_own_sizes_is_named_after_its_language_model(sources: Sources) -> None:
    assert sources.open().model.config.name == "openflamingo-gpt_neox"


def test_a_model_that_is_not_the_preset_is_refused_with_the_difference(sources: Sources) -> None:
    message = sources.refusal(preset="openflamingo-4b")
    assert message.startswith(f"{sources.paths['vision']}: vision.")
    assert "openflamingo-4b has" in message


def test_an_unknown_preset_is_a_usage_error_before_any_file_is_opened() -> None:
    absent = Path("absent")
    with pytest.raises(UsageError, match=r"unknown preset 'openflamingo-5b'; known:.*openflamingo-3b"):
        open_openflamingo(OpenFlamingoFiles(absent, absent, absent, preset="openflamingo-5b"))
