"""MPT, under two sets of names: MPT-1B's (``mosaic_gpt``), and MPT-7B's, which the transformers library uses too."""

from __future__ import annotations

from flamingo_rt.config import LanguageConfig
from flamingo_rt.importing.family import Family, fused, head_width, plain
from flamingo_rt.importing.settings import NOWHERE, Settings
from flamingo_rt.importing.sources import Source, TensorSlice

_NAMES = {
    "attention_norm": "norm_1", "ff_norm": "norm_2", "ff.up": "ffn.up_proj", "ff.down": "ffn.down_proj",
    "norm": "norm_f",
}
_MOSAIC_NAMES = {
    "attention_norm": "ln_1", "ff_norm": "ln_2", "ff.up": "mlp.mlp_up", "ff.down": "mlp.mlp_down",
    "norm": "ln_f",
}


def _names(source: Source) -> dict[str, str]:
    return _MOSAIC_NAMES if "transformer.blocks.0.ln_1.weight" in source else _NAMES


def _config(settings: Settings, rows: int) -> LanguageConfig:
    if settings.get("model_type") == "mosaic_gpt":  # one flat object, with other keys
        attention, prefix = settings, "attn_"
        for key in ("alibi", "no_bias"):  # its code has both off by default, so they must be stated
            settings.flag(key)
        ratio = settings.integer("mlp_ratio", 4)
    else:
        attention, prefix = settings.section("attn_config"), ""
        ratio = settings.integer("expansion_ratio", 4)
    attention.must({
        "alibi": True, f"{prefix}clip_qkv": None, "softmax_scale": None, "prefix_lm": False,
        "attn_uses_sequence_id": False, "attn_type": "multihead_attention", "rope": False, "qk_gn": False,
        "sliding_window_size": -1, f"{prefix}kv_n_heads": settings.integer("n_heads", 16),
    })
    attention.must(NOWHERE)
    ff = settings.section("ffn_config")
    ff.must({"ffn_type": "mptmlp"})
    ff.section("ffn_act_fn").must({"name": "gelu", "approximate": "none"})
    settings.must({"embedding_fraction": 1.0, "logit_scale": None, "no_bias": True, "block_overrides": None})
    settings.choice("norm_type", "low_precision_layernorm", ("low_precision_layernorm", "layernorm"))
    width, heads = settings.integer("d_model", 2048), settings.integer("n_heads", 16)
    return LanguageConfig(
        vocab_size=rows, width=width, layers=settings.integer("n_layers", 24), heads=heads, kv_heads=heads,
        head_width=head_width(settings, width, heads), ff_width=ratio * width,
        context=settings.integer("max_seq_len", 2048), norm="layernorm",
        norm_eps=settings.number("layer_norm_epsilon", 1e-5), norm_bias=False,
        positions="alibi", alibi_max_bias=attention.number("alibi_bias_max", 8.0), activation="gelu",
        query_key_norm=attention.flag(f"{prefix}qk_ln", False), tied_head=settings.flag("tie_word_embeddings", True),
    )


def _tensors(source: Source, config: LanguageConfig) -> dict[str, TensorSlice]:
    names = _names(source)
    slices = plain("norm", f"transformer.{names['norm']}", False)
    for layer in range(config.layers):
        ours, theirs = f"layers.{layer}", f"transformer.blocks.{layer}"
        slices |= fused(f"{ours}.attention", f"{theirs}.attn.Wqkv", False)
        slices |= plain(f"{ours}.attention.output", f"{theirs}.attn.out_proj", False)
        if config.query_key_norm:
            slices |= plain(f"{ours}.attention.query_norm", f"{theirs}.attn.q_ln", False)
            slices |= plain(f"{ours}.attention.key_norm", f"{theirs}.attn.k_ln", False)
        for name in ("attention_norm", "ff_norm", "ff.up", "ff.down"):
            slices |= plain(f"{ours}.{name}", f"{theirs}.{names[name]}", False)
    return slices


MPT = Family("MPT", "transformer.blocks", "transformer.wte.weight", "lm_head.weight", _config, _tensors)
