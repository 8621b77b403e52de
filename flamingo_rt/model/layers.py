"""Norms, activations and the feed-forward layer, as configured."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def make_norm(kind: str, width: int, eps: float, bias: bool) -> nn.Module:
    """``layernorm`` (with or without bias) or ``rmsnorm`` over the last dimension."""
    if kind == "rmsnorm":
        return nn.RMSNorm(width, eps=eps)
    return nn.LayerNorm(width, eps=eps, bias=bias)


def activate(kind: str, x: Tensor) -> Tensor:
    """Apply an elementwise activation; ``quick_gelu`` is CLIP's sigmoid approximation."""
    if kind == "gelu":
        return F.gelu(x)
    if kind == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if kind == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    if kind == "relu":
        return F.relu(x)
    if kind == "squared_relu":
        return F.relu(x).square()
    raise ValueError(f"unknown activation {kind!r}")


class FeedForward(nn.Module):
    """Two linear layers around an activation; with ``swiglu`` the activation gates a third (arXiv 2002.05202).

    [..., width] -> [..., width].
    """

    def __init__(self, width: int, hidden: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(width, hidden, bias=bias)
        self.gate = nn.Linear(width, hidden, bias=bias) if activation == "swiglu" else None
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        hidden = hidden * F.silu(self.gate(x)) if self.gate is not None else activate(self.activation, hidden)
        return self.down(hidden)


class Attention(nn.Module):
    """Attention of every query to all keys; without weights, so that a lowering can replace it by its own operator.

    query [B, T, H * d]; key and value [B, S, H * d], or [B, H, S, d] with the heads split already; bias [1 or B, 1, T,
    S] is added to the scaled scores -> [B, T, H * d].
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        key, value = (x if x.ndim == 4 else split_heads(x, self.heads) for x in (key, value))
        attended = F.scaled_dot_product_attention(split_heads(query, self.heads), key, value, attn_mask=bias)
        return merge_heads(attended)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[..., S, heads * d] -> [..., heads, S, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """[..., heads, S, d] -> [..., S, heads * d]."""
    return x.transpose(-3, -2).flatten(-2)
