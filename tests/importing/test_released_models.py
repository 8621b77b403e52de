"""The released models: their presets, and the names in their files, typed by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor

from flamingo_rt.checkpoints import expected_shapes
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import DataError
from flamingo_rt.importing import clip, frozen_parts, openflamingo, openflamingo_checkpoint
from flamingo_rt.importing.families import FAMILIES, family_of
from flamingo_rt.importing.openflamingo import OpenFlamingoFiles, open_openflamingo
from flamingo_rt.importing.settings import Settings
from flamingo_rt.importing.sources import Source, TensorSlice
from flamingo_rt.presets import preset
from flamingo_rt.weights.lazy import LazyTensor

GATED, HEAD = "lang_encoder.gated_cross_attn_layers", "embed_out.weight"


# The released models, with tensors that have a shape and no values

MPT_1B = {"model_type": "mosaic_gpt", "d_model": 2048, "n_heads": 16, "n_layers": 24, "mlp_ratio": 4, "alibi": True,
          "alibi_bias_max": 8, "attn_qk_ln": True, "max_seq_len": 2048, "no_bias": True}
REDPAJAMA = {"model_type": "gpt_neox", "hidden_size": 2560, "num_attention_heads": 32, "num_hidden_layers": 32,
             "intermediate_size": 10240, "rotary_pct": 1.0, "use_parallel_residual": False, "hidden_act": "gelu",
             "layer_norm_eps": 1e-5, "max_position_embeddings": 2048, "tie_word_embeddings": False}
MPT_7B = {"model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32, "expansion_ratio": 4,
          "attn_config": {"alibi": True, "alibi_bias_max": 8, "qk_ln": False, "clip_qkv": None, "prefix_lm": False},
          "max_seq_len": 2048, "no_bias": True, "norm_type": "low_precision_layernorm", "logit_scale": None}
RELEASED = {
    "openflamingo-3b": ("mpt-1b-redpajama-200b", MPT_1B),
    "openflamingo-3b-langinstruct": ("mpt-1b-redpajama-200b-dolly", MPT_1B),
    "openflamingo-4b": ("RedPajama-INCITE-Base-3B-v1", REDPAJAMA),
    "openflamingo-4b-langinstruct": ("RedPajama-INCITE-Instruct-3B-v1", REDPAJAMA),
    "openflamingo-9b": ("mpt-7b", MPT_7B),
}


@cache
def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    return expected_shapes(preset(name))


@pytest.fixture(scope="module")
def neox_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with as many tokens as GPT-NeoX's."""
    folder = tmp_path_factory.mktemp("neox")
    vocabulary = {"<|endoftext|>": 0} | {f"w{i}": i for i in range(1, 50277)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="w1")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return folder


class Released:
    """A released model's three sources: names and shapes from where the importer says it looks."""

    def __init__(self, name: str, folder: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        origin, settings = RELEASED[name]
        self.config: FlamingoConfig = preset(name)
        self.files = OpenFlamingoFiles(folder / "checkpoint.pt", folder / "clip.pt", folder / origin, tokenizer)
        self.files.language.mkdir()
        (self.files.language / "config.json").write_text(json.dumps(settings))
        family, language = FAMILIES[settings["model_type"]], self.config.language
        known = "transformer.blocks.0.ln_1.weight" if settings["model_type"] == "mosaic_gpt" else "other"
        self.vision = self.shapes(
            clip.vision_tensors(self.source("visual.class_embedding"), self.config.vision)
        )
        # All of CLIP is in the file: another tower must not be taken for this one.
        self.text = {"positional_embedding": (77, 768), "transformer.resblocks.0.ln_1.weight": (768,)}
        layers = family.tensors(self.source(known), language)
        self.language = self.shapes({f"language.{ours}": part for ours, part in layers.items()})
        rows = (50432, language.width)
        self.embedding = family.embedding  # the checkpoint has one too, which goes before
        self.language |= {family.embedding: rows} | ({} if language.tied_head else {family.head: rows})
        self.checkpoint = self.shapes(
            openflamingo_checkpoint.resampler_tensors(self.config.resampler)
            | openflamingo_checkpoint.cross_attention_tensors(self.config.cross_layers)
        ) | {f"lang_encoder.{family.embedding}": (50280, language.width)}
        parts = {
            self.files.checkpoint: self.checkpoint, self.files.vision: {**self.text, **self.vision},
            self.files.language: self.language,
        }
        for module in (openflamingo, frozen_parts):
            monkeypatch.setattr(module, "open_weights", lambda path: {
                name: LazyTensor(shape, torch.float16, path, self.never_read, name)
                for name, shape in parts[path].items()
            })

    @staticmethod
    def never_read() -> Tensor:
        raise AssertionError("values were read")

    @staticmethod
    def source(*names: str) -> Source:
        return Source("a model", Path("file"), dict.fromkeys(names))

    def shapes(self, slices: dict[str, TensorSlice]) -> dict[str, tuple[int, ...]]:
        """The foreign tensors that are whole or in parts in ``slices``: all parts of one must be asked for, once."""
        ours, found, asked = shapes_of(self.config.name), {}, {}
        for name, part in slices.items():
            shape = ours[name]
            found[part.name] = (shape[0] * part.count, *shape[1:]) if shape else (1,)
            asked.setdefault(part.name, []).append(part)
        for parts in asked.values():
            assert sorted(part.index for part in parts) == list(range(parts[0].count))
        return found


@pytest.fixture(params=RELEASED)
def released(request: pytest.FixtureRequest, tmp_path: Path, neox_tokenizer: Path, monkeypatch) -> Released:
    return Released(request.param, tmp_path, neox_tokenizer, monkeypatch)


def test_a_released_model_is_its_preset(released: Released) -> None:
    imported = open_openflamingo(released.files)
    assert imported.model.config == released.config  # with the name, which the language model's folder decides
    untied = not released.config.language.tied_head  # the head is the language model's, as it was
    assert [note.split()[0] for note in imported.notes] == [HEAD] * untied
    shapes = shapes_of(released.config.name)
    assert {name: tensor.shape for name, tensor in imported.model.tensors.items()} == shapes
    used = {(tensor.file, tensor.name) for tensor in imported.model.tensors.values()}
    for file, names in (
        (released.files.checkpoint, set(released.checkpoint)), (released.files.vision, set(released.vision)),
        (released.files.language, set(released.language) - {released.embedding}),
    ):
        assert {name for origin, name in used if origin == file} == names
    numbers = sum(math.prod(shape) for shape in shapes.values())
    assert sum(tensor.nbytes for tensor in imported.model.tensors.values()) == 2 * numbers


def test_the_check_against_a_preset_passes_and_names_the_model(released: Released) -> None:
    size = released.config.name.removesuffix("-langinstruct")
    for name in (name for name in RELEASED if name.removesuffix("-langinstruct") == size):
        assert open_openflamingo(replace(released.files, preset=name)).model.config.name == name
    other = "openflamingo-9b" if size != "openflamingo-9b" else "openflamingo-4b"
    with pytest.raises(DataError, match=rf"checkpoint\.pt: cross_attention\.interval is \d, {other} has \d"):
        open_openflamingo(replace(released.files, preset=other))


@pytest.mark.parametrize(
    ("path", "expected"),
    [("anas-awadalla/mpt-1b-redpajama-200b-dolly", "openflamingo-3b-langinstruct"),
     ("anas-awadalla/mpt-1b-redpajama-200b", "openflamingo-3b"), (None, "openflamingo-3b")],
)
def test_the_name_in_config_json_tells_instruction_tuned_models_too(
    tmp_path: Path, neox_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, path: str | None, expected: str
) -> None:
    files = Released("openflamingo-3b", tmp_path, neox_tokenizer, monkeypatch).files
    (files.language / "config.json").write_text(json.dumps({**MPT_1B, "_name_or_path": path}))
    assert open_openflamingo(files).model.config.name == expected


# Names in the files of each project, each written out: the importer must read them

PERCEIVER = """
perceiver.latents
perceiver.layers.0.0.norm_media.weight
perceiver.layers.0.0.norm_media.bias
perceiver.layers.0.0.norm_latents.weight
perceiver.layers.0.0.norm_latents.bias
perceiver.layers.5.0.to_q.weight
perceiver.layers.5.0.to_kv.weight
perceiver.layers.5.0.to_out.weight
perceiver.layers.5.1.0.weight
perceiver.layers.5.1.0.bias
perceiver.layers.5.1.1.weight
perceiver.layers.5.1.3.weight
perceiver.norm.weight
perceiver.norm.bias
"""
GATED_LAYER = """
attn_gate
ff_gate
attn.norm.weight
attn.norm.bias
attn.to_q.weight
attn.to_kv.weight
attn.to_out.weight
ff.0.weight
ff.0.bias
ff.1.weight
ff.3.weight
"""
OPEN_CLIP = """
visual.class_embedding
visual.positional_embedding
visual.conv1.weight
visual.ln_pre.weight
visual.ln_pre.bias
visual.transformer.resblocks.0.ln_1.weight
visual.transformer.resblocks.0.ln_2.bias
visual.transformer.resblocks.23.attn.in_proj_weight
visual.transformer.resblocks.23.attn.in_proj_bias
visual.transformer.resblocks.23.attn.out_proj.weight
visual.transformer.resblocks.23.attn.out_proj.bias
visual.transformer.resblocks.23.mlp.c_fc.weight
visual.transformer.resblocks.23.mlp.c_proj.bias
"""
TRANSFORMERS_CLIP = """
vision_model.embeddings.class_embedding
vision_model.embeddings.patch_embedding.weight
vision_model.embeddings.position_embedding.weight
vision_model.pre_layrnorm.weight
vision_model.pre_layrnorm.bias
vision_model.encoder.layers.0.layer_norm1.weight
vision_model.encoder.layers.0.layer_norm2.bias
vision_model.encoder.layers.23.self_attn.q_proj.bias
vision_model.encoder.layers.23.self_attn.k_proj.weight
vision_model.encoder.layers.23.self_attn.v_proj.weight
vision_model.encoder.layers.23.self_attn.out_proj.weight
vision_model.encoder.layers.23.mlp.fc1.weight
vision_model.encoder.layers.23.mlp.fc2.bias
"""
LANGUAGE = {
    "openflamingo-3b": """
transformer.blocks.0.ln_1.weight
transformer.blocks.0.ln_2.weight
transformer.blocks.0.attn.Wqkv.weight
transformer.blocks.23.attn.out_proj.weight
transformer.blocks.23.attn.q_ln.weight
transformer.blocks.23.attn.k_ln.weight
transformer.blocks.23.mlp.mlp_up.weight
transformer.blocks.23.mlp.mlp_down.weight
transformer.ln_f.weight
transformer.wte.weight
""",
    "openflamingo-4b": """
gpt_neox.embed_in.weight
gpt_neox.layers.0.input_layernorm.weight
gpt_neox.layers.0.input_layernorm.bias
gpt_neox.layers.0.post_attention_layernorm.weight
gpt_neox.layers.31.attention.query_key_value.weight
gpt_neox.layers.31.attention.query_key_value.bias
gpt_neox.layers.31.attention.dense.weight
gpt_neox.layers.31.attention.dense.bias
gpt_neox.layers.31.mlp.dense_h_to_4h.weight
gpt_neox.layers.31.mlp.dense_4h_to_h.bias
gpt_neox.final_layer_norm.weight
gpt_neox.final_layer_norm.bias
embed_out.weight
""",
    "openflamingo-9b": """
transformer.wte.weight
transformer.blocks.0.norm_1.weight
transformer.blocks.0.norm_2.weight
transformer.blocks.0.attn.Wqkv.weight
transformer.blocks.31.attn.out_proj.weight
transformer.blocks.31.ffn.up_proj.weight
transformer.blocks.31.ffn.down_proj.weight
transformer.norm_f.weight
""",
    "llama": """
model.embed_tokens.weight
model.layers.0.input_layernorm.weight
model.layers.0.post_attention_layernorm.weight
model.layers.0.self_attn.q_proj.weight
model.layers.0.self_attn.k_proj.weight
model.layers.0.self_attn.v_proj.weight
model.layers.0.self_attn.o_proj.weight
model.layers.31.mlp.gate_proj.weight
model.layers.31.mlp.up_proj.weight
model.layers.31.mlp.down_proj.weight
model.norm.weight
lm_head.weight
""",
    "opt": """
model.decoder.embed_tokens.weight
model.decoder.embed_positions.weight
model.decoder.final_layer_norm.weight
model.decoder.final_layer_norm.bias
model.decoder.layers.0.self_attn_layer_norm.weight
model.decoder.layers.0.final_layer_norm.bias
model.decoder.layers.0.self_attn.q_proj.weight
model.decoder.layers.0.self_attn.k_proj.bias
model.decoder.layers.23.self_attn.out_proj.weight
model.decoder.layers.0.fc1.bias
model.decoder.layers.23.fc2.weight
""",
}
LLAMA_7B = {"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
            "intermediate_size": 11008}
OPT_1B = {"model_type": "opt", "hidden_size": 2048, "num_attention_heads": 32, "num_hidden_layers": 24, "ffn_dim": 8192}


@pytest.mark.parametrize(("name", "layers", "outer"), [
    ("openflamingo-3b", (0, 23), "transformer.blocks"), ("openflamingo-4b", (1, 31), "gpt_neox.layers"),
    ("openflamingo-9b", (3, 31), "transformer.blocks"),
])
def test_the_names_in_released_checkpoints_are_read(name: str, layers: tuple[int, ...], outer: str) -> None:
    config = preset(name)
    slices = openflamingo_checkpoint.resampler_tensors(config.resampler)
    slices |= openflamingo_checkpoint.cross_attention_tensors(config.cross_layers)
    read = {part.name for part in slices.values()}
    assert set(PERCEIVER.split()) <= read
    for form in (f"{GATED}.{{}}", f"lang_encoder.{outer}.{{}}.gated_cross_attn_layer"):
        names = ["perceiver.latents", *(f"{form.format(layer)}.{part}" for layer in layers for part in
                                        GATED_LAYER.split())]
        renamed = openflamingo_checkpoint.trained_part(Path("checkpoint.pt"), dict.fromkeys(names), outer).tensors
        assert len(renamed) == len(names)
        assert set(renamed) <= read


@pytest.mark.parametrize("names", [OPEN_CLIP, TRANSFORMERS_CLIP], ids=["open_clip", "transformers"])
def test_the_names_of_clips_files_are_read(names: str) -> None:
    source = Source("the vision encoder", Path("clip.pt"), dict.fromkeys(names.split()[:1]))
    read = {part.name for part in clip.vision_tensors(source, preset("openflamingo-3b").vision).values()}
    assert set(names.split()) <= read


@pytest.mark.parametrize("name", LANGUAGE)
def test_the_names_of_language_models_files_are_read(name: str) -> None:
    settings = Settings(Path("config.json"), RELEASED[name][1] if name in RELEASED else
                        {"llama": LLAMA_7B, "opt": OPT_1B}[name])
    family, names = family_of(settings), set(LANGUAGE[name].split())
    source = Source("the language model", Path("lm"), dict.fromkeys(names))
    config = family.configure(settings, 50280)
    assert name not in RELEASED or config == preset(name).language
    read = {part.name for part in family.tensors(source, config).values()} | {family.embedding}
    assert names <= read | ({family.head} if not config.tied_head else set())
