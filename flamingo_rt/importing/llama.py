"""LLaMA, with or without grouped key and value heads."""

from __future__ import annotations

from flamingo_rt.config import LanguageConfig
from flamingo_rt.importing.family import Family, head_width, plain
from flamingo_rt.importing.settings import Settings
from flamingo_rt.importing.sources import Source, TensorSlice


def _config(settings: Settings, rows: int) -> LanguageConfig:
    width, heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    settings.must({"hidden_act": "silu", "mlp_bias": False})
    rope = settings.plain_rotary()
    for section in (settings, rope):
        section.must({"partial_rotary_factor": 1.0})
    bias = settings.flag("attention_bias", False)
    return LanguageConfig(
        vocab_size=rows, width=width, layers=settings.integer("num_hidden_layers"), heads=heads,
        kv_heads=settings.integer("num_key_value_heads", heads),
        head_width=head_width(settings, width, heads) if settings.get("head_dim") is None
        else settings.integer("head_dim"),
        ff_width=settings.integer("intermediate_size"), context=settings.integer("max_position_embeddings", 2048),
        norm="rmsnorm", norm_eps=settings.number("rms_norm_eps", 1e-6), norm_bias=False, positions="rotary",
        rotary_base=rope.number("rope_theta", settings.number("rope_theta", 10000.0)), activation="swiglu",
        attention_bias=bias, attention_output_bias=bias, tied_head=settings.flag("tie_word_embeddings", False),
    )


def _tensors(source: Source, config: LanguageConfig) -> dict[str, TensorSlice]:
    slices = plain("norm", "model.norm", False)
    for layer in range(config.layers):
        ours, theirs = f"layers.{layer}", f"model.layers.{layer}"
        for name in ("query", "key", "value", "output"):
            slices |= plain(f"{ours}.attention.{name}", f"{theirs}.self_attn.{name[0]}_proj", config.attention_bias)
        slices |= plain(f"{ours}.attention_norm", f"{theirs}.input_layernorm", False)
        slices |= plain(f"{ours}.ff_norm", f"{theirs}.post_attention_layernorm", False)
        for name in ("gate", "up", "down"):
            slices |= plain(f"{ours}.ff.{name}", f"{theirs}.mlp.{name}_proj", False)
    return slices


LLAMA = Family("LLaMA", "model.layers", "model.embed_tokens.weight", "lm_head.weight", _config, _tensors)
