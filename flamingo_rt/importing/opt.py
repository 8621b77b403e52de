"""OPT, in the form that normalises before each layer."""

from __future__ import annotations

from flamingo_rt.config import LanguageConfig
from flamingo_rt.importing.family import Family, head_width, plain
from flamingo_rt.importing.settings import Settings
from flamingo_rt.importing.sources import Source, TensorSlice


def _config(settings: Settings, rows: int) -> LanguageConfig:
    width, heads = settings.integer("hidden_size", 768), settings.integer("num_attention_heads", 12)
    settings.must({
        "do_layer_norm_before": True, "_remove_final_layer_norm": False, "enable_bias": True,
        "layer_norm_elementwise_affine": True, "word_embed_proj_dim": width,
    })
    return LanguageConfig(
        vocab_size=rows, width=width, layers=settings.integer("num_hidden_layers", 12), heads=heads, kv_heads=heads,
        head_width=head_width(settings, width, heads), ff_width=settings.integer("ffn_dim", 3072),
        context=settings.integer("max_position_embeddings", 2048), norm="layernorm", norm_bias=True,
        positions="learnt", position_offset=2, activation=settings.activation("activation_function", "relu"),
        attention_bias=True, attention_output_bias=True, ff_bias=True,
        tied_head=settings.flag("tie_word_embeddings", True),
    )


def _tensors(source: Source, config: LanguageConfig) -> dict[str, TensorSlice]:
    slices = plain("norm", "model.decoder.final_layer_norm", True)
    slices["position_table.weight"] = TensorSlice("model.decoder.embed_positions.weight")
    for layer in range(config.layers):
        ours, theirs = f"layers.{layer}", f"model.decoder.layers.{layer}"
        for name in ("query", "key", "value"):
            slices |= plain(f"{ours}.attention.{name}", f"{theirs}.self_attn.{name[0]}_proj", True)
        slices |= plain(f"{ours}.attention.output", f"{theirs}.self_attn.out_proj", True)
        slices |= plain(f"{ours}.attention_norm", f"{theirs}.self_attn_layer_norm", True)
        slices |= plain(f"{ours}.ff_norm", f"{theirs}.final_layer_norm", True)
        slices |= plain(f"{ours}.ff.up", f"{theirs}.fc1", True)
        slices |= plain(f"{ours}.ff.down", f"{theirs}.fc2", True)
    return slices


OPT = Family(
    "OPT", "model.decoder.layers", "model.decoder.embed_tokens.weight", "lm_head.weight", _config, _tensors
)
