"""Lowerings: forms of attention, one for each kind of runtime, and the parts that several of them share.

A `Lowering` names the opset, the cached self-attention (`CachedAttention`), the form of all other attention
(`BasicAttention`, or a runtime's own operator) and that of relative positions. `PaddedHeads` fits any cached attention
to heads that are narrower than the cache's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flamingo_rt.contract import FLOAT_DTYPES
from flamingo_rt.export.relative_positions import PrecomputedRelativeBias
from flamingo_rt.model.language_model import Attend, ScoreBias
from flamingo_rt.model.layers import Attention, merge_heads, split_heads


class CachedAttend(Attend, Protocol):
    """Self-attention over a cache; after the forward pass ``present`` holds each layer's new cache, key then value."""

    present: list[Tensor]


# Makes the self-attention of one forward pass from (past, cache_length [B]).
CachedAttendFactory = Callable[[Sequence[Tensor], Tensor], CachedAttend]


@dataclass(frozen=True)
class Lowering:
    """Form of the graphs for one kind of runtime.

    ``attend`` makes the cached self-attention, ``attention`` the replacement of an `Attention` module;
    ``relative_bias`` is the form of relative positions, ``computes`` lists the types that the graphs can compute in.
    Where the exporter starts at a later opset, it traces to ``traced_opset``, and ``finish`` rewrites the onnx_ir model
    to ``opset`` in place.
    """

    name: str
    opset: int
    attend: CachedAttendFactory
    attention: Callable[[Attention], nn.Module]
    relative_bias: type[PrecomputedRelativeBias]
    computes: tuple[str, ...] = FLOAT_DTYPES
    traced_opset: int | None = None
    finish: Callable[[Any], None] = lambda model: None


class CachedAttention:
    """Base of every `CachedAttend`. past: per layer key and value; cache_length int64 [B]."""

    def __init__(self, past: Sequence[Tensor], cache_length: Tensor) -> None:
        self.past, self.cache_length = past, cache_length
        self.present: list[Tensor] = []


class PaddedHeads:
    """A `CachedAttend` over a cache whose heads are wider than the model's.

    ``attend`` gets queries, keys and values with zeros after each head, which add nothing to a score, and the zeros it
    returns are cut off. It divides scores by the root of the padded width, so queries are scaled up beforehand.
    """

    def __init__(self, attend: CachedAttend, head_width: int, cached_width: int) -> None:
        self.attend, self.head_width, self.cached_width = attend, head_width, cached_width
        self.present = attend.present

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, positions: Tensor,
        bias: ScoreBias | None, bias_query: Tensor,
    ) -> Tensor:
        """See `Attend`."""
        query = query * (self.cached_width / self.head_width) ** 0.5
        query, key, value = (F.pad(x, (0, self.cached_width - self.head_width)) for x in (query, key, value))
        out = self.attend(layer, query, key, value, positions, bias, bias_query)
        return out[..., : self.head_width]


# Attention in basic operators, for runtimes without an operator of their own: matrix products around a softmax. The
# softmax is in float32 whatever the model's type is: in half precision small scores vanish beside a large one, and a
# masked row in float16 sums to minus infinity.


class BasicAttention(nn.Module):
    """`Attention` in basic operators."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads = attention.heads

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `Attention.forward`."""
        key, value = (x if x.ndim == 4 else split_heads(x, self.heads) for x in (key, value))
        query = split_heads(query, self.heads)
        scores = ((query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)).float()
        scores = scores if bias is None else scores + bias.float()
        return merge_heads(scores.softmax(-1).to(value.dtype) @ value)


def group_queries(query: Tensor, kv_heads: int) -> Tensor:
    """query [B, T, H, d] -> [B, Hk, G * T, d], scaled: the G heads that share keys form one matrix."""
    scaled = query * query.shape[-1] ** -0.5
    return scaled.unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def grouped_scores(grouped: Tensor, key: Tensor, tokens: int) -> Tensor:
    """grouped [B, Hk, G * T, d], key [B, Hk, d, S], ``tokens`` T -> float32 [B, H, T, S]."""
    return (grouped @ key).unflatten(2, (-1, tokens)).flatten(1, 2).float()


def masked_scores(allowed: Tensor, scores: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """``scores``, or 0, where ``allowed``; elsewhere half the type's lowest number: nothing is left of it after a
    softmax, and a score added to it does not overflow."""
    kept = torch.zeros((), dtype=torch.float32) if scores is None else scores.float()
    return torch.where(allowed, kept, torch.finfo(dtype).min / 2).to(dtype)


def weighted_values(weights: Tensor, value: Tensor, tokens: int) -> Tensor:
    """weights [B, H, T, S], value [B, Hk, S, d], ``tokens`` T -> [B, H, T, d]."""
    kv_heads = value.shape[1]
    grouped = weights.unflatten(1, (kv_heads, -1)).flatten(2, 3)
    return (grouped @ value).unflatten(2, (-1, tokens)).flatten(1, 2)
