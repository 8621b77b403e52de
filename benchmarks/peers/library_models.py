"""The language models: their libraries' classes at small sizes, and the names of their files.

``mosaic_gpt`` is a stand-in. MPT-1B's code is not part of any package; its structure (MPT with a LayerNorm over the
full width of queries and keys) is made here from transformers' MPT, and its file gets MPT-1B's names.
"""

from __future__ import annotations

import json
import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from benchmarks.peers.openflamingo_cases import CONTEXT, ROWS, Case

CLASSES = {
    "mpt": MptForCausalLM, "mosaic_gpt": MptForCausalLM, "gpt_neox": GPTNeoXForCausalLM, "llama": LlamaForCausalLM,
    "opt": OPTForCausalLM,
}
MPT_SIZES = {"d_model": 48, "n_heads": 6, "n_layers": 4, "max_seq_len": CONTEXT, "vocab_size": ROWS}
# The keys of MPT-1B's config.json.
MOSAIC_GPT = {
    "model_type": "mosaic_gpt", "architectures": ["MosaicGPT"], **MPT_SIZES, "mlp_ratio": 4, "alibi": True,
    "alibi_bias_max": 8, "attn_clip_qkv": None, "attn_impl": "torch", "attn_pdrop": 0, "attn_qk_ln": True,
    "attn_uses_sequence_id": False, "emb_init_std": None, "emb_pdrop": 0, "embedding_fraction": 1.0,
    "logit_scale": None, "low_precision_layernorm": True, "no_bias": True, "prefix_lm": False, "resid_pdrop": 0,
    "softmax_scale": None, "torch_dtype": "float32", "use_cache": False,
}
MOSAIC_NAMES = (
    (".norm_1.", ".ln_1."), (".norm_2.", ".ln_2."), (".attn.Wqkv.q_ln.", ".attn.q_ln."),
    (".attn.Wqkv.k_ln.", ".attn.k_ln."), (".ffn.up_proj.", ".mlp.mlp_up."), (".ffn.down_proj.", ".mlp.mlp_down."),
    ("transformer.norm_f.", "transformer.ln_f."),
)


class NormedQueryKey(nn.Linear):
    """A projection to queries, keys and values that norms the first two."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 3 * width, bias=False)
        self.q_ln = nn.LayerNorm(width, bias=False)
        self.k_ln = nn.LayerNorm(width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = super().forward(x).chunk(3, dim=-1)
        return torch.cat([self.q_ln(query), self.k_ln(key), value], dim=-1)


def make_config(case: Case) -> PretrainedConfig:
    """The library's configuration."""
    if case.family in ("mpt", "mosaic_gpt"):
        sizes = MPT_SIZES | {"max_seq_len": case.context, "vocab_size": case.rows}
        return MptConfig(**sizes, expansion_ratio=4, no_bias=True, **case.language)
    small = {"vocab_size": case.rows, "num_hidden_layers": 4, "max_position_embeddings": case.context}
    if case.family == "opt":
        return OPTConfig(**small, hidden_size=40, num_attention_heads=5, ffn_dim=160, word_embed_proj_dim=40,
                         do_layer_norm_before=True, activation_function="relu", **case.language)
    small |= {"hidden_size": 32, "num_attention_heads": 4}
    if case.family == "gpt_neox":
        return GPTNeoXConfig(**small | {"intermediate_size": 128, "rotary_pct": 0.5} | case.language)
    return LlamaConfig(**small, num_key_value_heads=2, intermediate_size=88, **case.language)


def make_language(case: Case) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The library's model with 60 rows, and the config.json that comes with its file."""
    config = make_config(case)
    config.architectures = [CLASSES[case.family].__name__]
    written = json.loads(config.to_json_string(use_diff=True))
    model = CLASSES[case.family](config).eval()
    if case.family == "mosaic_gpt":
        written = MOSAIC_GPT
        for block in model.transformer.blocks:
            block.attn.Wqkv = NormedQueryKey(config.d_model)
    return model, written


def tied(model: PreTrainedModel) -> bool:
    """Whether the head is the embedding."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def file_name(case: Case, name: str) -> str:
    """The name in the language model's file of a tensor that the library calls ``name``."""
    if case.family == "mosaic_gpt":
        for ours, theirs in MOSAIC_NAMES:
            name = name.replace(ours, theirs)
    return name


def old_buffers(case: Case) -> dict[str, list[int]]:
    """Names and shapes of constants that older releases of transformers wrote into files."""
    if not case.buffers:
        return {}
    layers = {"llama": "model.layers.{}.self_attn", "gpt_neox": "gpt_neox.layers.{}.attention"}[case.family]
    found: dict[str, list[int]] = {}
    for layer in range(4):
        start = layers.format(layer)
        found[f"{start}.rotary_emb.inv_freq"] = [4 if case.family == "llama" else 2]
        if case.family == "gpt_neox":
            found |= {f"{start}.bias": [1, 1, CONTEXT, CONTEXT], f"{start}.masked_bias": []}
    return found


def in_checkpoint(case: Case, name: str) -> str:
    """A name of the language model's file, as the layer it belongs to is called inside an OpenFlamingo model."""
    return "lang_encoder." + re.sub(r"(layers|blocks)\.(\d+)\.", r"\1.\2.decoder_layer.", name)
