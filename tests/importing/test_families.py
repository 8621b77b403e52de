"""Each family's config.json and tensors: every key is honoured or refused, and fused matrices come apart right."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flamingo_rt.config import LanguageConfig
from flamingo_rt.errors import DataError
from flamingo_rt.importing.families import FAMILIES, family_of
from flamingo_rt.importing.settings import NOWHERE, Settings
from flamingo_rt.importing.sources import Source
from flamingo_rt.weights.lazy import LazyTensor

FILE = Path("lm/config.json")
ROWS = 70
# A small model of each family, no more than its keys without a default.
SMALL = {
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 3},
    "mosaic_gpt": {"d_model": 32, "n_heads": 4, "n_layers": 3, "alibi": True, "no_bias": True},
    "gpt_neox": {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 80},
    "llama": {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 80},
    "opt": {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "ffn_dim": 80},
}
MPT_COMMON = {"norm": "layernorm", "norm_bias": False, "positions": "alibi", "activation": "gelu", "ff_width": 128}


def configure(kind: str, **changes: object) -> LanguageConfig:
    settings = Settings(FILE, {"model_type": kind, **SMALL[kind], **changes})
    return family_of(settings).configure(settings, ROWS)


def changes(config: LanguageConfig, other: LanguageConfig) -> dict[str, object]:
    """The fields of ``other`` that differ from ``config``'s."""
    before, after = dataclasses.asdict(config), dataclasses.asdict(other)
    return {key: after[key] for key in after if after[key] != before[key]}


# Keys


@pytest.mark.parametrize(
    ("kind", "key", "value", "expected"),
    [
        ("mpt", "d_model", 64, {"width": 64, "head_width": 16, "ff_width": 256}),
        ("mpt", "n_heads", 2, {"heads": 2, "kv_heads": 2, "head_width": 16}),
        ("mpt", "n_layers", 5, {"layers": 5}),
        ("mpt", "expansion_ratio", 3, {"ff_width": 96}),
        ("mpt", "max_seq_len", 65, {"context": 65}),
        ("mpt", "layer_norm_epsilon", 1e-3, {"norm_eps": 1e-3}),
        ("mpt", "attn_config", {"alibi_bias_max": 4}, {"alibi_max_bias": 4.0}),
        ("mpt", "attn_config", {"qk_ln": True}, {"query_key_norm": True}),
        ("mpt", "tie_word_embeddings", False, {"tied_head": False}),
        ("mpt", "norm_type", "layernorm", {}),
        ("mpt", "ffn_config", {"ffn_type": "mptmlp", "ffn_act_fn": {"name": "gelu", "approximate": "none"}}, {}),
        ("mpt", "attn_config", {"rope": False, "qk_gn": False, "sliding_window_size": -1}, {}),
        ("mosaic_gpt", "mlp_ratio", 3, {"ff_width": 96}),
        ("mosaic_gpt", "max_seq_len", 65, {"context": 65}),
        ("mosaic_gpt", "alibi_bias_max", 4, {"alibi_max_bias": 4.0}),
        ("mosaic_gpt", "attn_qk_ln", True, {"query_key_norm": True}),
        ("gpt_neox", "hidden_size", 64, {"width": 64, "head_width": 16}),
        ("gpt_neox", "num_attention_heads", 2, {"heads": 2, "kv_heads": 2, "head_width": 16}),
        ("gpt_neox", "num_hidden_layers", 5, {"layers": 5}),
        ("gpt_neox", "intermediate_size", 96, {"ff_width": 96}),
        ("gpt_neox", "max_position_embeddings", 65, {"context": 65}),
        ("gpt_neox", "layer_norm_eps", 1e-3, {"norm_eps": 1e-3}),
        ("gpt_neox", "rotary_pct", 0.5, {"rotary_fraction": 0.5}),
        ("gpt_neox", "partial_rotary_factor", 0.5, {"rotary_fraction": 0.5}),
        ("gpt_neox", "rotary_emb_base", 500, {"rotary_base": 500.0}),
        ("gpt_neox", "rope_theta", 500, {"rotary_base": 500.0}),
        ("gpt_neox", "rope_parameters", {"rope_theta": 500, "partial_rotary_factor": 1.0, "rope_type": "default"},
         {"rotary_base": 500.0, "rotary_fraction": 1.0}),
        ("gpt_neox", "rope_scaling", {"rope_type": "default"}, {}),
        ("gpt_neox", "hidden_act", "gelu_new", {"activation": "gelu_tanh"}),
        ("gpt_neox", "hidden_act", "gelu_fast", {"activation": "gelu_tanh"}),
        ("gpt_neox", "hidden_act", "relu", {"activation": "relu"}),
        ("gpt_neox", "attention_bias", False, {"attention_bias": False, "attention_output_bias": False}),
        ("gpt_neox", "use_parallel_residual", False, {"parallel_residual": False}),
        ("gpt_neox", "tie_word_embeddings", True, {"tied_head": True}),
        ("llama", "hidden_size", 64, {"width": 64, "head_width": 16}),
        ("llama", "num_attention_heads", 2, {"heads": 2, "kv_heads": 2, "head_width": 16}),
        ("llama", "num_key_value_heads", 2, {"kv_heads": 2}),
        ("llama", "head_dim", 16, {"head_width": 16}),
        ("llama", "head_dim", 100, {"head_width": 100}),  # OpenLLaMA-3B's
        ("llama", "rope_scaling", {"rope_type": "default"}, {}),
        ("llama", "rope_scaling", {"type": "default"}, {}),
        ("llama", "num_hidden_layers", 5, {"layers": 5}),
        ("llama", "intermediate_size", 96, {"ff_width": 96}),
        ("llama", "max_position_embeddings", 65, {"context": 65}),
        ("llama", "rms_norm_eps", 1e-3, {"norm_eps": 1e-3}),
        ("llama", "rope_theta", 500, {"rotary_base": 500.0}),
        ("llama", "rope_parameters", {"rope_theta": 500, "rope_type": "default"}, {"rotary_base": 500.0}),
        ("llama", "rope_scaling", {"rope_theta": 500, "rope_type": "default"}, {"rotary_base": 500.0}),
        ("llama", "partial_rotary_factor", 1.0, {}),
        ("gpt_neox", "rope_scaling", {"rope_theta": 500, "partial_rotary_factor": 0.5},
         {"rotary_base": 500.0, "rotary_fraction": 0.5}),
        ("mpt", "attn_config", {"kv_n_heads": 4}, {}),
        ("llama", "attention_bias", True, {"attention_bias": True, "attention_output_bias": True}),
        ("llama", "tie_word_embeddings", True, {"tied_head": True}),
        ("opt", "hidden_size", 64, {"width": 64, "head_width": 16}),
        ("opt", "num_attention_heads", 2, {"heads": 2, "kv_heads": 2, "head_width": 16}),
        ("opt", "num_hidden_layers", 5, {"layers": 5}),
        ("opt", "ffn_dim", 96, {"ff_width": 96}),
        ("opt", "max_position_embeddings", 65, {"context": 65}),
        ("opt", "activation_function", "gelu", {"activation": "gelu"}),
        ("opt", "tie_word_embeddings", False, {"tied_head": False}),
        ("opt", "word_embed_proj_dim", 32, {}),
    ],
)
def test_a_key_changes_its_own_sizes_and_nothing_else(kind: str, key: str, value: object, expected: dict) -> None:
    assert changes(configure(kind), configure(kind, **{key: value})) == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mpt", {"context": 2048, "norm_eps": 1e-5, "alibi_max_bias": 8.0, "query_key_norm": False, "tied_head": True,
                 "attention_bias": False, "ff_bias": False, **MPT_COMMON}),
        ("mosaic_gpt", {"context": 2048, "alibi_max_bias": 8.0, "query_key_norm": False, "tied_head": True,
                        **MPT_COMMON}),
        ("gpt_neox", {"context": 2048, "norm": "layernorm", "norm_eps": 1e-5, "norm_bias": True, "positions": "rotary",
                      "rotary_fraction": 0.25, "rotary_base": 10000.0, "activation": "gelu", "attention_bias": True,
                      "attention_output_bias": True, "ff_bias": True, "parallel_residual": True, "tied_head": False}),
        ("llama", {"context": 2048, "norm": "rmsnorm", "norm_eps": 1e-6, "norm_bias": False, "positions": "rotary",
                   "rotary_fraction": 1.0, "rotary_base": 10000.0, "kv_heads": 4, "activation": "swiglu",
                   "attention_bias": False, "attention_output_bias": False, "ff_bias": False,
                   "parallel_residual": False, "tied_head": False}),
        ("opt", {"context": 2048, "norm": "layernorm", "norm_eps": 1e-5, "norm_bias": True, "positions": "learnt",
                 "position_offset": 2, "activation": "relu", "attention_bias": True, "attention_output_bias": True,
                 "ff_bias": True, "parallel_residual": False, "tied_head": True}),
    ],
)
def test_what_a_file_leaves_out_is_what_the_transformers_library_documents(kind: str, expected: dict) -> None:
    found = dataclasses.asdict(configure(kind))
    assert {key: found[key] for key in expected} == expected
    assert (found["vocab_size"], found["width"], found["layers"], found["heads"]) == (ROWS, 32, 3, 4)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("mpt", {"width": 2048, "layers": 24, "heads": 16, "head_width": 128, "ff_width": 8192, "context": 2048}),
        ("opt", {"width": 768, "layers": 12, "heads": 12, "head_width": 64, "ff_width": 3072, "context": 2048}),
    ],
)
def test_sizes_that_have_a_default_may_be_left_out(kind: str, sizes: dict) -> None:
    settings = Settings(FILE, {"model_type": kind})
    found = dataclasses.asdict(family_of(settings).configure(settings, ROWS))
    assert {key: found[key] for key in sizes} == sizes


@pytest.mark.parametrize("kind", SMALL)
def test_null_means_the_default(kind: str) -> None:
    optional = ["tie_word_embeddings", "rope_scaling", "rope_parameters", "num_key_value_heads", "head_dim",
                "word_embed_proj_dim", "attn_config", "logit_scale", "layer_norm_eps", "max_position_embeddings"]
    assert configure(kind, **dict.fromkeys(optional)) == configure(kind)


@pytest.mark.parametrize("kind", SMALL)
def test_keys_that_change_no_answer_are_ignored(kind: str) -> None:
    idle = {"architectures": ["X"], "torch_dtype": "bfloat16", "use_cache": False, "attn_pdrop": 0.1,
            "hidden_dropout": 0.1, "vocab_size": 50432, "init_device": "cpu", "initializer_range": 0.5}
    assert configure(kind, **idle) == configure(kind)


@pytest.mark.parametrize(("key", "value"), [
    ("rope_scaling", {"rope_type": "default", "rope_theta": 700.0}), ("rope_scaling", {"rope_type": "default"}),
])
def test_rope_scaling_replaces_rope_parameters_as_in_the_library(key: str, value: dict) -> None:
    """Keys that `rope_scaling` lacks are taken from beside it, not from `rope_parameters`."""
    both = {"rope_theta": 600.0, "rope_parameters": {"rope_theta": 500.0}, key: value}
    assert configure("llama", **both).rotary_base == value.get("rope_theta", 600.0)


# Every key that the transformers library knows, of releases before and after 5.0

KEYS = json.loads((Path(__file__).parent.parent / "fixtures" / "config_keys.json").read_text())
# Honoured or refused: each has a line in a table of this file.
DECISIVE = {
    "llama": {
        "hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "intermediate_size",
        "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters",
        "attention_bias", "mlp_bias", "hidden_act", "tie_word_embeddings", "pruned_heads",
    },
    "gpt_neox": {
        "hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "max_position_embeddings",
        "layer_norm_eps", "rotary_pct", "rotary_emb_base", "rope_theta", "partial_rotary_factor", "rope_scaling",
        "rope_parameters", "hidden_act", "attention_bias", "use_parallel_residual", "tie_word_embeddings",
        "pruned_heads",
    },
    "opt": {
        "hidden_size", "num_attention_heads", "num_hidden_layers", "ffn_dim", "max_position_embeddings",
        "activation_function", "do_layer_norm_before", "_remove_final_layer_norm", "enable_bias",
        "layer_norm_elementwise_affine", "word_embed_proj_dim", "tie_word_embeddings", "pruned_heads",
    },
    "mpt": {
        "d_model", "n_heads", "n_layers", "expansion_ratio", "max_seq_len", "layer_norm_epsilon", "attn_config",
        "logit_scale", "no_bias", "embedding_fraction", "norm_type", "tie_word_embeddings", "pruned_heads",
    },
    "mpt.attn_config": {
        "attn_type", "clip_qkv", "softmax_scale", "prefix_lm", "qk_ln", "attn_uses_sequence_id", "alibi",
        "alibi_bias_max", "pruned_heads",
    },
}
# Keys about training, generation, outputs or the file itself; `model_type` and `vocab_size` are read elsewhere.
IDLE = {
    "_attn_implementation_autoset", "_name_or_path", "add_cross_attention", "architectures", "attention_dropout",
    "attn_impl", "attn_pdrop", "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward",
    "classifier_dropout", "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample",
    "dropout", "dtype", "early_stopping", "emb_pdrop", "encoder_no_repeat_ngram_size", "eos_token_id",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id",
    "hidden_dropout", "id2label", "init_device", "init_std", "initializer_range", "is_decoder", "is_encoder_decoder",
    "label2id", "layerdrop", "learned_pos_emb", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_return_sequences", "output_attentions", "output_hidden_states",
    "output_scores", "pad_token_id", "prefix", "pretraining_tp", "problem_type", "remove_invalid_values",
    "repetition_penalty", "resid_pdrop", "return_dict", "return_dict_in_generate", "sep_token_id", "suppress_tokens",
    "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p",
    "torch_dtype", "torchscript", "transformers_version", "typical_p", "use_bfloat16", "use_cache", "verbose",
    "model_type", "vocab_size",
}


@pytest.mark.parametrize("family", DECISIVE)
def test_every_key_of_the_library_is_honoured_refused_or_idle(family: str) -> None:
    """An idle key changes nothing whatever its value; every other is in `DECISIVE`."""
    known = {key for version in KEYS.values() for key in version[family]}
    assert len(KEYS) >= 2
    assert known >= DECISIVE[family]
    kind, _, section = family.partition(".")
    for key in sorted(known - DECISIVE[family] - {"model_type"}):
        assert key in IDLE or (section and key == "tie_word_embeddings"), key
        for value in ("gelu", 7, 0.5, True, {"a": 1}, None):
            change = {section: {key: value}} if section else {key: value}
            assert configure(kind, **change) == configure(kind), (key, value)


@pytest.mark.parametrize("family", DECISIVE)
def test_every_key_that_changes_the_computation_is_in_a_table(family: str) -> None:
    kind, _, section = family.partition(".")
    tested = set(NOWHERE)
    for test in (test_a_key_changes_its_own_sizes_and_nothing_else, test_a_value_that_cannot_be_honoured_is_refused):
        for row in test.pytestmark[0].args[1]:
            outer, _, inner = row[1].partition(".")
            if row[0] == kind and section in ("", outer):
                tested |= {inner, *(row[2] if isinstance(row[2], dict) else ())} if section else {outer}
    assert DECISIVE[family] <= tested


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize(("key", "neutral"), NOWHERE.items())
def test_what_no_family_computes_is_refused(kind: str, key: str, neutral: object) -> None:
    for value in (neutral, None):
        assert configure(kind, **{key: value}) == configure(kind)
    value = {"0": [1]} if neutral == {} else True if neutral is False else 0.25
    assert_refused(kind, key, value)


# Refusals


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("mpt", "attn_config.clip_qkv", 6),
        ("mpt", "attn_config.alibi", False),
        ("mpt", "attn_config.prefix_lm", True),
        ("mpt", "attn_config.attn_type", "multiquery_attention"),
        ("mpt", "attn_config.softmax_scale", 0.5),
        ("mpt", "attn_config.attn_uses_sequence_id", True),
        ("mpt", "attn_config.rope", True),
        ("mpt", "attn_config.qk_gn", True),
        ("mpt", "attn_config.sliding_window_size", 512),
        ("mpt", "ffn_config.ffn_type", "mptglu"),
        ("mpt", "ffn_config.ffn_act_fn.name", "relu"),
        ("mpt", "ffn_config.ffn_act_fn.approximate", "tanh"),
        ("mpt", "attn_config.kv_n_heads", 2),
        ("mpt", "attn_config.attn_logit_softcapping", 30.0),
        ("mpt", "block_overrides", {"order": []}),
        ("mpt", "logit_scale", 0.5),
        ("mpt", "logit_scale", "inv_sqrt_d_model"),
        ("mpt", "embedding_fraction", 0.5),
        ("mpt", "no_bias", False),
        ("mpt", "norm_type", "rmsnorm"),
        ("mosaic_gpt", "attn_clip_qkv", 6),
        ("mosaic_gpt", "alibi", False),
        ("mosaic_gpt", "alibi", None),
        ("mosaic_gpt", "no_bias", None),
        ("mosaic_gpt", "prefix_lm", True),
        ("mosaic_gpt", "softmax_scale", 0.5),
        ("mosaic_gpt", "attn_uses_sequence_id", True),
        ("mosaic_gpt", "logit_scale", 0.5),
        ("mosaic_gpt", "no_bias", False),
        ("gpt_neox", "rope_scaling.type", "linear"),
        ("gpt_neox", "rope_parameters.rope_type", "yarn"),
        ("gpt_neox", "hidden_act", "silu"),
        ("llama", "rope_scaling.type", "linear"),
        ("llama", "rope_scaling.rope_type", "dynamic"),
        ("llama", "rope_parameters.rope_type", "llama3"),
        ("llama", "rope_parameters.full_attention", {"rope_theta": 500}),
        ("llama", "rope_parameters.partial_rotary_factor", 0.5),
        ("llama", "rope_scaling.partial_rotary_factor", 0.5),
        ("llama", "partial_rotary_factor", 0.5),
        ("llama", "hidden_act", "gelu"),
        ("llama", "mlp_bias", True),
        ("opt", "do_layer_norm_before", False),
        ("opt", "word_embed_proj_dim", 16),
        ("opt", "_remove_final_layer_norm", True),
        ("opt", "enable_bias", False),
        ("opt", "layer_norm_elementwise_affine", False),
        ("opt", "activation_function", "silu"),
    ],
)
def test_a_value_that_cannot_be_honoured_is_refused(kind: str, key: str, value: object) -> None:
    assert_refused(kind, key, value)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("mpt", "d_model", "32"),
        ("mpt", "n_layers", 0),
        ("mpt", "expansion_ratio", 2.5),
        ("mpt", "attn_config.alibi_bias_max", "8"),
        ("mpt", "attn_config.qk_ln", 1),
        ("mpt", "norm_type", ["layernorm"]),
        ("mosaic_gpt", "mlp_ratio", "4"),
        ("gpt_neox", "hidden_size", True),
        ("gpt_neox", "num_hidden_layers", -2),
        ("gpt_neox", "layer_norm_eps", "1e-5"),
        ("gpt_neox", "layer_norm_eps", float("nan")),
        ("gpt_neox", "rotary_emb_base", 10**400),
        ("gpt_neox", "rotary_pct", [0.25]),
        ("gpt_neox", "hidden_act", ["gelu"]),
        ("gpt_neox", "hidden_act", {"name": "gelu"}),
        ("gpt_neox", "use_parallel_residual", "true"),
        ("llama", "num_key_value_heads", "2"),
        ("llama", "head_dim", 8.0),
        ("llama", "head_dim", 0),
        ("llama", "rope_scaling.rope_type", ["default"]),
        ("mosaic_gpt", "alibi", 1),
        ("llama", "rope_theta", "10000"),
        ("llama", "rope_theta", float("inf")),
        ("llama", "rope_parameters.rope_theta", "10000"),
        ("llama", "tie_word_embeddings", 0),
        ("opt", "ffn_dim", [80]),
        ("opt", "activation_function", 3),
        ("opt", "max_position_embeddings", "2048"),
    ],
)
def test_a_value_of_another_type_is_named(kind: str, key: str, value: object) -> None:
    assert_refused(kind, key, value)


def assert_refused(kind: str, key: str, value: object) -> None:
    """The error names the file, the key with the object it is in, and the value."""
    outer, *inner = key.split(".")
    content = value
    for part in reversed(inner):
        content = {part: content}
    with pytest.raises(DataError) as caught:
        configure(kind, **{outer: content})
    assert f"{FILE}: {key} is {value!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "key"),
    [("mpt", "attn_config"), ("mpt", "ffn_config"), ("llama", "rope_parameters"), ("llama", "rope_scaling")],
)
@pytest.mark.parametrize("value", ["text", [1], 3])
def test_a_section_that_is_no_object_is_named(kind: str, key: str, value: object) -> None:
    with pytest.raises(DataError) as caught:
        configure(kind, **{key: value})
    assert f"{FILE}: {key} is {value!r}, not an object" in str(caught.value)


@pytest.mark.parametrize("kind", ["gpt_neox", "llama"])
@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size"])
@pytest.mark.parametrize("null", [True, False])
def test_a_missing_size_is_named(kind: str, key: str, null: bool) -> None:
    data = {"model_type": kind, **SMALL[kind]}
    if null:
        data[key] = None
    else:
        del data[key]
    settings = Settings(FILE, data)
    with pytest.raises(DataError, match=f"{FILE}: {key} is None"):
        family_of(settings).configure(settings, ROWS)


@pytest.mark.parametrize("kind", SMALL)
def test_a_width_that_the_heads_do_not_divide_is_named(kind: str) -> None:
    with pytest.raises(DataError, match=f"{FILE}: a width of 32 cannot be split into 5 heads"):
        configure(kind, **{"n_heads" if "n_heads" in SMALL[kind] else "num_attention_heads": 5})


def test_heads_of_a_stated_width_need_not_divide_the_models() -> None:
    config = configure("llama", num_attention_heads=5, num_key_value_heads=5, head_dim=8)
    assert (config.width, config.heads, config.head_width) == (32, 5, 8)


@pytest.mark.parametrize("key", ["alibi", "no_bias"])
def test_options_that_mosaics_own_code_switches_off_by_default_must_be_stated(key: str) -> None:
    data = {"model_type": "mosaic_gpt", **SMALL["mosaic_gpt"]}
    del data[key]
    with pytest.raises(DataError, match=f"{FILE}: {key} is None"):
        family_of(Settings(FILE, data)).configure(Settings(FILE, data), ROWS)


@pytest.mark.parametrize("kind", ["bert", "MPT", None, 3, ["llama"], {}])
def test_an_unknown_model_type_lists_the_known_ones(kind: object) -> None:
    with pytest.raises(DataError) as caught:
        family_of(Settings(FILE, {"model_type": kind}))
    assert f"{FILE}: model_type is {kind!r}" in str(caught.value)
    assert "mpt, mosaic_gpt, gpt_neox, llama, opt" in str(caught.value)
    assert list(FAMILIES) == list(SMALL)


@pytest.mark.parametrize("data", [[], "text", None, 3])
def test_a_file_that_is_no_object_is_refused(data: object) -> None:
    with pytest.raises(DataError, match=f"{FILE}: the file is .*, not an object"):
        Settings(FILE, data)


# Tensors


def taken(kind: str, config: LanguageConfig, tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """One of our tensors, from theirs."""
    lazy = {
        key: LazyTensor(tuple(tensor.shape), tensor.dtype, Path("lm.bin"), lambda tensor=tensor: tensor.clone(), key)
        for key, tensor in tensors.items()
    }
    source = Source("the language model", Path("lm"), lazy)
    values = source.tensor_of(FAMILIES[kind].tensors(source, config)[name], shape).read()
    assert tuple(values.shape) == shape
    assert values.is_contiguous()
    return values


def test_gpt_neoxs_matrix_is_divided_head_by_head() -> None:
    config = configure("gpt_neox")
    theirs = "gpt_neox.layers.1.attention.query_key_value"
    weight, bias = torch.arange(96 * 32.0).view(96, 32), torch.arange(96.0)
    tensors = {f"{theirs}.weight": weight, f"{theirs}.bias": bias}
    for index, name in enumerate(("query", "key", "value")):
        rows = []
        for head in range(4):  # each head has its 8 rows of the query, then of the key, then of the value
            for row in range(8):
                rows.append(head * 24 + index * 8 + row)
        ours = f"layers.1.attention.{name}"
        assert torch.equal(taken("gpt_neox", config, tensors, f"{ours}.weight", (32, 32)), weight[rows])
        assert torch.equal(taken("gpt_neox", config, tensors, f"{ours}.bias", (32,)), bias[rows])


@pytest.mark.parametrize("kind", ["mpt", "mosaic_gpt"])
def test_mpts_matrix_is_divided_by_rows(kind: str) -> None:
    weight = torch.arange(96 * 32.0).view(96, 32)
    tensors = {"transformer.blocks.1.attn.Wqkv.weight": weight}
    for index, name in enumerate(("query", "key", "value")):
        found = taken(kind, configure(kind), tensors, f"layers.1.attention.{name}.weight", (32, 32))
        assert torch.equal(found, weight[index * 32 : index * 32 + 32])


def test_llamas_keys_and_values_may_have_fewer_heads() -> None:
    config = configure("llama", num_key_value_heads=2)
    tensors = {
        f"model.layers.2.self_attn.{letter}_proj.weight": torch.randn(rows, 32)
        for letter, rows in (("q", 32), ("k", 16), ("v", 16), ("o", 32))
    }
    for name, rows in (("query", 32), ("key", 16), ("value", 16), ("output", 32)):
        found = taken("llama", config, tensors, f"layers.2.attention.{name}.weight", (rows, 32))
        assert torch.equal(found, tensors[f"model.layers.2.self_attn.{name[0]}_proj.weight"])


def test_the_two_namings_of_mpt_are_told_apart_by_the_tensors() -> None:
    for kind in ("mpt", "mosaic_gpt"):  # whatever the model_type says
        for norm, up in (("norm_1", "ffn.up_proj"), ("ln_1", "mlp.mlp_up")):
            tensors = {
                f"transformer.blocks.0.{norm}.weight": torch.randn(32),
                f"transformer.blocks.0.{up}.weight": torch.randn(128, 32),
            }
            found = taken(kind, configure(kind), tensors, "layers.0.ff.up.weight", (128, 32))
            assert torch.equal(found, tensors[f"transformer.blocks.0.{up}.weight"])
