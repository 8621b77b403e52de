"""Attention in basic operators: matrix products around a softmax, which every version of every runtime knows.

The softmax is computed in float32 whatever the model's type is: scores in half precision lose the small ones beside a
large one, and a masked row in float16 sums to minus infinity.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flamingo_rt.model.layers import Attention, merge_heads, split_heads


def masked(allowed: Tensor, scores: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """``scores``, or 0, where ``allowed``; elsewhere a number so low that nothing is left after a softmax, and high
    enough that a score beside it does not reach infinity."""
    kept = torch.zeros((), dtype=torch.float32) if scores is None else scores.float()
    return torch.where(allowed, kept, torch.finfo(dtype).min / 2).to(dtype)


def group_queries(query: Tensor, kv_heads: int) -> Tensor:
    """query [B, T, H, d] -> [B, Hk, G * T, d], scaled: the G heads that share keys stand in one matrix."""
    scaled = query * query.shape[-1] ** -0.5
    return scaled.unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def scores(grouped: Tensor, key: Tensor, tokens: int) -> Tensor:
    """grouped [B, Hk, G * T, d], key [B, Hk, d, S], ``tokens`` T -> float32 [B, H, T, S]."""
    return (grouped @ key).unflatten(2, (-1, tokens)).flatten(1, 2).float()


def weigh(weights: Tensor, value: Tensor, tokens: int) -> Tensor:
    """weights [B, H, T, S], value [B, Hk, S, d] -> [B, H, T, d]."""
    kv_heads = value.shape[1]
    grouped = weights.unflatten(1, (kv_heads, -1)).flatten(2, 3)
    return (grouped @ value).unflatten(2, (-1, tokens)).flatten(1, 2)


class BasicAttention(nn.Module):
    """`Attention` in basic operators."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads = attention.heads

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        key, value = (x if x.ndim == 4 else split_heads(x, self.heads) for x in (key, value))
        query = split_heads(query, self.heads)
        found = ((query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)).float()
        found = found if bias is None else found + bias.float()
        return merge_heads(found.softmax(-1).to(value.dtype) @ value)
