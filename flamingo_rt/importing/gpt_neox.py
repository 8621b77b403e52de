"""GPT-NeoX: RedPajama-INCITE, Pythia. Query, key and value are fused head by head."""

from __future__ import annotations

from flamingo_rt.config import LanguageConfig
from flamingo_rt.importing.family import Family, fused, head_width, plain
from flamingo_rt.importing.settings import Settings
from flamingo_rt.importing.sources import Source, TensorSlice


def _config(settings: Settings, rows: int) -> LanguageConfig:
    width, heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    rope = settings.plain_rotary()
    bias = settings.flag("attention_bias", True)
    fraction = settings.number("rotary_pct", settings.number("partial_rotary_factor", 0.25))
    base = settings.number("rotary_emb_base", settings.number("rope_theta", 10000.0))
    return LanguageConfig(
        vocab_size=rows, width=width, layers=settings.integer("num_hidden_layers"), heads=heads, kv_heads=heads,
        head_width=head_width(settings, width, heads), ff_width=settings.integer("intermediate_size"),
        context=settings.integer("max_position_embeddings", 2048), norm="layernorm",
        norm_eps=settings.number("layer_norm_eps", 1e-5), norm_bias=True, positions="rotary",
        rotary_fraction=rope.number("partial_rotary_factor", fraction), rotary_base=rope.number("rope_theta", base),
        activation=settings.activation("hidden_act", "gelu"), attention_bias=bias, attention_output_bias=bias,
        ff_bias=True, parallel_residual=settings.flag("use_parallel_residual", True),
        tied_head=settings.flag("tie_word_embeddings", False),
    )


def _tensors(source: Source, config: LanguageConfig) -> dict[str, TensorSlice]:
    slices = plain("norm", "gpt_neox.final_layer_norm", True)
    for layer in range(config.layers):
        ours, theirs = f"layers.{layer}", f"gpt_neox.layers.{layer}"
        slices |= fused(
            f"{ours}.attention", f"{theirs}.attention.query_key_value", config.attention_bias, heads=config.heads
        )
        slices |= plain(f"{ours}.attention.output", f"{theirs}.attention.dense", config.attention_output_bias)
        slices |= plain(f"{ours}.attention_norm", f"{theirs}.input_layernorm", True)
        slices |= plain(f"{ours}.ff_norm", f"{theirs}.post_attention_layernorm", True)
        slices |= plain(f"{ours}.ff.up", f"{theirs}.mlp.dense_h_to_4h", True)
        slices |= plain(f"{ours}.ff.down", f"{theirs}.mlp.dense_4h_to_h", True)
    return slices


GPT_NEOX = Family(
    "GPT-NeoX", "gpt_neox.layers", "gpt_neox.embed_in.weight", "embed_out.weight", _config, _tensors
)
