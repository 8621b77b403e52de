"""The ``tensorrt`` lowering: attention as ONNX's own operators of opset 24, which TensorRT fuses.

Findings from compiling with TensorRT-RTX 1.7.1.116; that TensorRT 10.15 and later have the same layers is from NVIDIA's
documentation:

- TensorScatter becomes KVCacheUpdate, which writes the cache in place and requires a fixed capacity.
- Attention becomes one fused kernel in float16 and bfloat16, with heads of 32 to 128 numbers (8 is refused). In float32
  it is refused ("not supported by a dedicated kernel"), so float32 graphs have attention in basic operators.
- `softmax_precision` is refused: the kernel decides the softmax's type. Norms ask for float32 themselves (`stash_type`)
  and are compiled with casts around them.
- `is_causal` and a mask exclude each other, and the meaning of the first beside a cache differs between runtimes: the
  mask is explicit. The parser silently drops `nonpad_kv_seqlen`, so the mask also has to hide unused slots.
- A step of one new token reads the cache in place. In front of a step of several, the cache is copied: with masks of
  other shapes and of booleans, three-dimensional inputs, reshaped and transposed keys alike. So an engine has sizes of
  its own for one token (`contract.size_ranges`).
- With an explicit `scale` of 1, keys are no longer written in place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flamingo_rt.export.lowerings.lowering import (
    BasicAttention,
    CachedAttention,
    Lowering,
    group_queries,
    grouped_scores,
    masked_scores,
    weighted_values,
)
from flamingo_rt.export.relative_positions import FixedLengthRelativeBias
from flamingo_rt.model.language_model import ScoreBias
from flamingo_rt.model.layers import Attention, merge_heads, split_heads

NAME = "tensorrt"
OPSET = 24


class ScatterAttend(CachedAttention):
    """`CachedAttend` that writes new keys and values into the cache, then attends to all of it.

    past: per layer key and value [B, Hk, C, d]; cache_length int64 [B]. Unused slots are masked, but must hold finite
    numbers.
    """

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, positions: Tensor,
        bias: ScoreBias | None, bias_query: Tensor,
    ) -> Tensor:
        """See `Attend`."""
        keys = self._written(self.past[2 * layer], key)
        values = self._written(self.past[2 * layer + 1], value)
        self.present += [keys, values]
        capacity, tokens = self.past[0].shape[2], query.shape[1]  # one symbol, so that layers share their mask
        allowed = torch.arange(capacity, device=query.device) <= positions[:, None, :, None]  # [B, 1, T, C]
        position_scores = None if bias is None else bias(bias_query, positions, capacity)
        mask = masked_scores(allowed, position_scores, query.dtype)
        if fused(query.dtype):
            return _attention(query.transpose(1, 2), keys, values, mask).transpose(1, 2)
        scores = grouped_scores(group_queries(query, keys.shape[1]), keys.transpose(2, 3), tokens) + mask
        return weighted_values(scores.softmax(-1), values, tokens).transpose(1, 2)

    def _written(self, past: Tensor, new: Tensor) -> Tensor:
        """Write new [B, T, Hk, d] into past [B, Hk, C, d], in each row from its cache_length on."""
        return torch.onnx.ops.symbolic(
            "TensorScatter", (past, new.transpose(1, 2), self.cache_length), attrs={"axis": -2, "mode": "linear"},
            dtype=past.dtype, shape=past.shape, version=OPSET,
        )


class FusedAttention(nn.Module):
    """`Attention` as one operator in half precision, in basic operators in float32."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads, self.basic = attention.heads, BasicAttention(attention)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `Attention.forward`."""
        if not fused(query.dtype):
            return self.basic(query, key, value, bias)
        key, value = (x if x.ndim == 4 else split_heads(x, self.heads) for x in (key, value))
        return merge_heads(_attention(split_heads(query, self.heads), key, value, bias))


def fused(dtype: torch.dtype) -> bool:
    """Whether TensorRT (RTX 1.7.1 was tried) has kernels for Attention in this type."""
    return dtype in (torch.float16, torch.bfloat16)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """query [B, H, T, d], key and value [B, Hk, S, d], mask [1 or B, 1 or H, T, S] -> [B, H, T, d]."""
    inputs = (query, key, value) if mask is None else (query, key, value, mask)
    return torch.onnx.ops.symbolic("Attention", inputs, dtype=query.dtype, shape=query.shape, version=OPSET)


LOWERING = Lowering(NAME, OPSET, ScatterAttend, FusedAttention, FixedLengthRelativeBias)
