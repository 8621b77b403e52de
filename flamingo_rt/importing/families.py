"""The language models that OpenFlamingo builds on: their configurations and the names of their tensors.

A family maps a ``config.json`` and the tensors beside it to our `LanguageConfig`, and every tensor of ours
(``layers.0.attention.query.weight``, …) to a `Take` of theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flamingo_rt.config import LanguageConfig
from flamingo_rt.errors import DataError
from flamingo_rt.importing.settings import Settings
from flamingo_rt.importing.sources import Source, Take

PARTS = ("weight", "bias")


@dataclass(frozen=True)
class Family:
    """One architecture. ``layers``: the path of its decoder layers; ``embedding`` and ``head``: tensors whose rows are
    the vocabulary. ``configure`` takes the settings, the tensors and the number of rows of the embedding."""

    name: str
    layers: str
    embedding: str
    head: str
    configure: Callable[[Settings, Source, int], LanguageConfig]
    tensors: Callable[[Source, LanguageConfig], dict[str, Take]]


def _plain(ours: str, theirs: str, bias: bool, weight: bool = True) -> dict[str, Take]:
    """A layer that has the same form on both sides."""
    wanted = [part for part, there in zip(PARTS, (weight, bias), strict=True) if there]
    return {f"{ours}.{part}": Take(f"{theirs}.{part}") for part in wanted}


def _fused(ours: str, theirs: str, bias: bool, heads: int = 1) -> dict[str, Take]:
    """Query, key and value from one matrix."""
    return {
        f"{ours}.{name}.{part}": Take(f"{theirs}.{part}", index, 3, heads)
        for index, name in enumerate(("query", "key", "value"))
        for part in (PARTS if bias else PARTS[:1])
    }


# MPT. Two namings: MPT-1B's own code ("mosaic_gpt") and MPT-7B's, which the transformers library took over.
_MPT_NAMES = {
    "attention_norm": "norm_1", "ff_norm": "norm_2", "ff.up": "ffn.up_proj", "ff.down": "ffn.down_proj", "norm": "norm_f"
}
_MOSAIC_NAMES = {
    "attention_norm": "ln_1", "ff_norm": "ln_2", "ff.up": "mlp.mlp_up", "ff.down": "mlp.mlp_down", "norm": "ln_f"
}


def _mpt_names(source: Source) -> dict[str, str]:
    return _MOSAIC_NAMES if "transformer.blocks.0.ln_1.weight" in source else _MPT_NAMES


def _mpt_config(settings: Settings, source: Source, rows: int) -> LanguageConfig:
    if settings.get("model_type") == "mosaic_gpt":  # one flat object, with other keys
        attention, prefix = settings, "attn_"
        ratio = settings.integer("mlp_ratio", 4)
    else:
        attention, prefix = settings.section("attn_config"), ""
        ratio = settings.integer("expansion_ratio", 4)
    attention.must({
        "alibi": True, f"{prefix}clip_qkv": None, "softmax_scale": None, "prefix_lm": False,
        "attn_uses_sequence_id": False, "attn_type": "multihead_attention",
    })
    settings.must({"embedding_fraction": 1.0, "logit_scale": None, "no_bias": True})
    width, heads = settings.integer("d_model", 2048), settings.integer("n_heads", 16)
    return LanguageConfig(
        vocab_size=rows, width=width, layers=settings.integer("n_layers", 24), heads=heads, kv_heads=heads,
        head_width=_head_width(settings, width, heads), ff_width=ratio * width,
        context=settings.integer("max_seq_len", 2048), norm="layernorm",
        norm_eps=settings.number("layer_norm_epsilon", 1e-5), norm_bias=False,
        positions="alibi", alibi_max_bias=attention.number("alibi_bias_max", 8.0), activation="gelu",
        query_key_norm=attention.flag(f"{prefix}qk_ln", False), tied_head=settings.flag("tie_word_embeddings", True),
    )


def _mpt_tensors(source: Source, config: LanguageConfig) -> dict[str, Take]:
    names = _mpt_names(source)
    takes = _plain("norm", f"transformer.{names['norm']}", False)
    for layer in range(config.layers):
        ours, theirs = f"layers.{layer}", f"transformer.blocks.{layer}"
        takes |= _fused(f"{ours}.attention", f"{theirs}.attn.Wqkv", False)
        takes |= _plain(f"{ours}.attention.output", f"{theirs}.attn.out_proj", False)
        if config.query_key_norm:
            takes |= _plain(f"{ours}.attention.query_norm", f"{theirs}.attn.q_ln", False)
            takes |= _plain(f"{ours}.attention.key_norm", f"{theirs}.attn.k_ln", False)
        for name in ("attention_norm", "ff_norm", "ff.up", "ff.down"):
            takes |= _plain(f"{ours}.{name}", f"{theirs}.{names[name]}", False)
    return takes


def _neox_config(settings: Settings, source: Source, rows: int) -> LanguageConfig:
    width, heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    settings.must({"rope_scaling": None})
    rope = settings.section("rope_parameters")
    rope.must({"rope_type": "default"})
    bias = settings.flag("attention_bias", True)
    fraction = settings.number("rotary_pct", settings.number("partial_rotary_factor", 0.25))
    base = settings.number("rotary_emb_base", settings.number("rope_theta", 10000.0))
    return LanguageConfig(
        vocab_size=rows, width=width, layers=settings.integer("num_hidden_layers"), heads=heads, kv_heads=heads,
        head_width=_head_width(settings, width, heads), ff_width=settings.integer("intermediate_size"),
        context=settings.integer("max_position_embeddings", 2048), norm="layernorm",
        norm_eps=settings.number("layer_norm_eps", 1e-5), norm_bias=True, positions="rotary",
        rotary_fraction=rope.number("partial_rotary_factor", fraction), rotary_base=rope.number("rope_theta", base),
        activation=settings.activation("hidden_act", "gelu"), attention_bias=bias, attention_output_bias=bias,
        ff_bias=True, parallel_residual=settings.flag("use_parallel_residual", True),
        tied_head=settings.flag("tie_word_embeddings", False),
    )


def _neox_tensors(source: Source, config: LanguageConfig) -> dict[str, Take]:
    takes = _plain("norm", "gpt_neox.final_layer_norm", True)
    for layer in range(config.layers):
        ours, theirs = f"layers.{layer}", f"gpt_neox.layers.{layer}"
        takes |= _fused(
            f"{ours}.attention", f"{theirs}.attention.query_key_value", config.attention_bias, heads=config.heads
        )
        takes |= _plain(f"{ours}.attention.output", f"{theirs}.attention.dense", config.attention_output_bias)
        takes |= _plain(f"{ours}.attention_norm", f"{theirs}.input_layernorm", True)
        takes |= _plain(f"{ours}.ff_norm", f"{theirs}.post_attention_layernorm", True)
        takes |= _plain(f"{ours}.ff.up", f"{theirs}.mlp.dense_h_to_4h", True)
        takes |= _plain(f"{ours}.ff.down", f"{theirs}.mlp.dense_4h_to_h", True)
    return takes


def _llama_config(settings: Settings, source: Source, rows: int) -> LanguageConfig:
    width, heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    settings.must({"rope_scaling": None, "hidden_act": "silu", "mlp_bias": False})
    rope = settings.section("rope_parameters")
    rope.must({"rope_type": "default"})
    bias = settings.flag("attention_bias", False)
    return LanguageConfig(
        vocab_size=rows, width=width, layers=settings.integer("num_hidden_layers"), heads=heads,
        kv_heads=settings.integer("num_key_value_heads", heads),
        head_width=settings.integer("head_dim", _head_width(settings, width, heads)),
        ff_width=settings.integer("intermediate_size"), context=settings.integer("max_position_embeddings", 2048),
        norm="rmsnorm", norm_eps=settings.number("rms_norm_eps", 1e-6), norm_bias=False, positions="rotary",
        rotary_base=rope.number("rope_theta", settings.number("rope_theta", 10000.0)), activation="swiglu",
        attention_bias=bias, attention_output_bias=bias, tied_head=settings.flag("tie_word_embeddings", False),
    )


def _llama_tensors(source: Source, config: LanguageConfig) -> dict[str, Take]:
    takes = _plain("norm", "model.norm", False)
    for layer in range(config.layers):
        ours, theirs = f"layers.{layer}", f"model.layers.{layer}"
        for name in ("query", "key", "value", "output"):
            takes |= _plain(f"{ours}.attention.{name}", f"{theirs}.self_attn.{name[0]}_proj", config.attention_bias)
        takes |= _plain(f"{ours}.attention_norm", f"{theirs}.input_layernorm", False)
        takes |= _plain(f"{ours}.ff_norm", f"{theirs}.post_attention_layernorm", False)
        for name in ("gate", "up", "down"):
            takes |= _plain(f"{ours}.ff.{name}", f"{theirs}.mlp.{name}_proj", False)
    return takes


def _opt_config(settings: Settings, source: Source, rows: int) -> LanguageConfig:
    width, heads = settings.integer("hidden_size", 768), settings.integer("num_attention_heads", 12)
    settings.must({
        "do_layer_norm_before": True, "_remove_final_layer_norm": False, "enable_bias": True,
        "layer_norm_elementwise_affine": True, "word_embed_proj_dim": width,
    })
    return LanguageConfig(
        vocab_size=rows, width=width, layers=settings.integer("num_hidden_layers", 12), heads=heads, kv_heads=heads,
        head_width=_head_width(settings, width, heads), ff_width=settings.integer("ffn_dim", 3072),
        context=settings.integer("max_position_embeddings", 2048), norm="layernorm", norm_bias=True,
        positions="learnt", position_offset=2, activation=settings.activation("activation_function", "relu"),
        attention_bias=True, attention_output_bias=True, ff_bias=True,
        tied_head=settings.flag("tie_word_embeddings", True),
    )


def _opt_tensors(source: Source, config: LanguageConfig) -> dict[str, Take]:
    takes = _plain("norm", "model.decoder.final_layer_norm", True)
    takes["position_table.weight"] = Take("model.decoder.embed_positions.weight")
    for layer in range(config.layers):
        ours, theirs = f"layers.{layer}", f"model.decoder.layers.{layer}"
        for name in ("query", "key", "value"):
            takes |= _plain(f"{ours}.attention.{name}", f"{theirs}.self_attn.{name[0]}_proj", True)
        takes |= _plain(f"{ours}.attention.output", f"{theirs}.self_attn.out_proj", True)
        takes |= _plain(f"{ours}.attention_norm", f"{theirs}.self_attn_layer_norm", True)
        takes |= _plain(f"{ours}.ff_norm", f"{theirs}.final_layer_norm", True)
        takes |= _plain(f"{ours}.ff.up", f"{theirs}.fc1", True)
        takes |= _plain(f"{ours}.ff.down", f"{theirs}.fc2", True)
    return takes


def _head_width(settings: Settings, width: int, heads: int) -> int:
    if width % heads:
        raise DataError(f"{settings.path}: a width of {width} cannot be split into {heads} heads")
    return width // heads


_MPT = Family("MPT", "transformer.blocks", "transformer.wte.weight", "lm_head.weight", _mpt_config, _mpt_tensors)
FAMILIES: dict[str, Family] = {  # by the config.json's model_type
    "mpt": _MPT,
    "mosaic_gpt": _MPT,
    "gpt_neox": Family(
        "GPT-NeoX", "gpt_neox.layers", "gpt_neox.embed_in.weight", "embed_out.weight", _neox_config, _neox_tensors
    ),
    "llama": Family(
        "LLaMA", "model.layers", "model.embed_tokens.weight", "lm_head.weight", _llama_config, _llama_tensors
    ),
    "opt": Family(
        "OPT", "model.decoder.layers", "model.decoder.embed_tokens.weight", "lm_head.weight", _opt_config, _opt_tensors
    ),
}


def family_of(settings: Settings) -> Family:
    """The family that a ``config.json`` names. Raises `DataError` that lists the known ones."""
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise DataError(f"{settings.path}: model_type is {kind!r}; language models known: {', '.join(FAMILIES)}")
    return FAMILIES[kind]
