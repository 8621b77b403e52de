"""The decoder-only language model, stateless: keys and values of earlier tokens belong to its caller."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flamingo_rt.config import LanguageConfig
from flamingo_rt.model.cross_attention import CrossAttention, Media
from flamingo_rt.model.layers import FeedForward, make_norm
from flamingo_rt.model.positions import AlibiBias, RelativeBias, rotate


class ScoreBias(Protocol):
    """Position-dependent attention scores: query [B, T, H, d], positions [B, T] -> [1 or B, H, T, keys]."""

    def __call__(self, query: Tensor, positions: Tensor, keys: int) -> Tensor: ...


class Attend(Protocol):
    """Causal self-attention of layer ``layer``: the one function that training, caches and lowerings each implement.

    query [B, T, H, d], key and value [B, T, Hk, d] of the new tokens at ``positions`` [B, T] -> [B, T, H, d].
    ``bias_query`` is the query to call ``bias`` with, if there is one.
    """

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, positions: Tensor,
        bias: ScoreBias | None, bias_query: Tensor,
    ) -> Tensor: ...


def attend_without_cache(
    layer: int, query: Tensor, key: Tensor, value: Tensor, positions: Tensor, bias: ScoreBias | None, bias_query: Tensor
) -> Tensor:
    """`Attend` over a whole sequence that starts at position 0: the reference."""
    tokens, grouped = query.shape[1], query.shape[2] != key.shape[2]
    query_, key_, value_ = (x.transpose(1, 2) for x in (query, key, value))
    if bias is None:
        out = F.scaled_dot_product_attention(query_, key_, value_, is_causal=True, enable_gqa=grouped)
        return out.transpose(1, 2)
    mask = bias(bias_query, positions, tokens).to(query.dtype)
    later = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).triu(1)
    mask = mask.masked_fill(later, torch.finfo(mask.dtype).min)
    return F.scaled_dot_product_attention(query_, key_, value_, attn_mask=mask, enable_gqa=grouped).transpose(1, 2)


class SelfAttention(nn.Module):
    """Query, key, value and output projections, with positions and norms, around an `Attend`."""

    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        inner, inner_kv = config.heads * config.head_width, config.kv_heads * config.head_width
        self.query = nn.Linear(config.width, inner, bias=config.attention_bias)
        self.key = nn.Linear(config.width, inner_kv, bias=config.attention_bias)
        self.value = nn.Linear(config.width, inner_kv, bias=config.attention_bias)
        self.output = nn.Linear(inner, config.width, bias=config.attention_output_bias)
        if config.query_key_norm:
            self.query_norm = make_norm(config.norm, inner, config.norm_eps, config.norm_bias)
            self.key_norm = make_norm(config.norm, inner_kv, config.norm_eps, config.norm_bias)
        self.bias: nn.Module | None = None
        if config.positions == "alibi":
            self.bias = AlibiBias(config)
        elif config.positions == "relative":
            self.bias = RelativeBias(config)
            self.content_bias = nn.Parameter(torch.zeros(config.heads, config.head_width))

    def forward(self, hidden: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        config = self.config
        query, key, value = self.query(hidden), self.key(hidden), self.value(hidden)
        if config.query_key_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        query = query.unflatten(-1, (config.heads, -1))  # [B, T, H, d]
        key = key.unflatten(-1, (config.kv_heads, -1))
        value = value.unflatten(-1, (config.kv_heads, -1))
        if config.positions == "rotary":
            query = rotate(query, positions, config.rotary_width, config.rotary_base)
            key = rotate(key, positions, config.rotary_width, config.rotary_base)
        content = query + self.content_bias if config.positions == "relative" else query
        out = attend(self.layer, content, key, value, positions, self.bias, query)
        return self.output(out.flatten(2))


class DecoderLayer(nn.Module):
    """Self-attention and feed-forward, one after the other or in parallel (GPT-NeoX)."""

    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__()
        self.parallel = config.parallel_residual
        self.attention_norm = make_norm(config.norm, config.width, config.norm_eps, config.norm_bias)
        self.attention = SelfAttention(config, layer)
        self.ff_norm = make_norm(config.norm, config.width, config.norm_eps, config.norm_bias)
        self.ff = FeedForward(config.width, config.ff_width, config.activation, config.ff_bias)

    def forward(self, hidden: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        attended = self.attention(self.attention_norm(hidden), positions, attend)
        if self.parallel:
            return hidden + attended + self.ff(self.ff_norm(hidden))
        hidden = hidden + attended
        return hidden + self.ff(self.ff_norm(hidden))


class TokenEmbedding(nn.Embedding):
    """Table of token embeddings, ids [B, T] -> [B, T, D]; its rows are also the head of a model whose head is tied."""

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] -> logits [..., vocab]."""
        return F.linear(hidden, self.weight)


class LanguageModel(nn.Module):
    """input_ids [B, T] -> logits [B, T or K, vocab]."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = TokenEmbedding(config.vocab_size, config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.position_table: nn.Embedding | None = None
        if config.positions == "learnt":
            self.position_table = nn.Embedding(config.context + config.position_offset, config.width)
            nn.init.normal_(self.position_table.weight, std=0.02)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.layers))
        self.norm = make_norm(config.norm, config.width, config.norm_eps, config.norm_bias)
        self.head = None if config.tied_head else nn.Linear(config.width, config.vocab_size, bias=config.head_bias)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        attend: Attend = attend_without_cache,
        cross_attention: CrossAttention | None = None,
        media: Media | None = None,
        logits_index: Tensor | None = None,
    ) -> Tensor:
        """Logits of every token, or of those at ``logits_index`` [B, K]; ``cross_attention`` acts before each layer."""
        hidden = self.embedding(input_ids)
        if self.position_table is not None:
            hidden = hidden + self.position_table(positions + self.config.position_offset)
        for index, layer in enumerate(self.layers):
            if cross_attention is not None:
                hidden = cross_attention(index, hidden, media)
            hidden = layer(hidden, positions, attend)
        if logits_index is not None:
            hidden = hidden.gather(1, logits_index[:, :, None].expand(-1, -1, hidden.shape[-1]))
        hidden = self.norm(hidden)
        return self.embedding.logits(hidden) if self.head is None else self.head(hidden)
