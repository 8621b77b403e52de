"""The ``ort`` lowering: attention as ONNX Runtime's own operators.

Cached self-attention is GroupQueryAttention, which writes the cache in place: it gets the new keys and values and the
whole cache buffer, and copies nothing when past and present are bound to the same memory. All other attention is
MultiHeadAttention, one operator instead of a dozen. https://onnxruntime.ai/docs/ContribOperators: com.microsoft.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from flamingo_rt.export.lowerings.lowering import CachedAttention, Lowering
from flamingo_rt.export.relative_positions import DynamicLengthRelativeBias
from flamingo_rt.model.language_model import ScoreBias
from flamingo_rt.model.layers import Attention

NAME = "ort"
OPSET = 22  # the first whose Conv has bfloat16


class GroupQueryAttend(CachedAttention):
    """`CachedAttend` as one operator. past: per layer key and value [B, Hk, C, d]; cache_length int64 [B]."""

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, positions: Tensor,
        bias: ScoreBias | None, bias_query: Tensor,
    ) -> Tensor:
        """See `Attend`."""
        past_key, past_value = self.past[2 * layer], self.past[2 * layer + 1]
        tokens, heads, width = query.shape[1:]
        last = self.cache_length + tokens - 1  # [B]: the operator wants total length - 1
        total = last.max() + 1
        scores = bias(bias_query, positions, _as_size(total)).to(query.dtype) if bias is not None else None
        inputs = (
            query.flatten(2), key.flatten(2), value.flatten(2), past_key, past_value,
            last.to(torch.int32), total.to(torch.int32), None, None, None, scores,
        )
        out, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            inputs if bias is not None else inputs[:7],
            attrs={"num_heads": heads, "kv_num_heads": key.shape[2], "scale": float(width**-0.5)},
            dtypes=[query.dtype] * 3,
            shapes=[query.flatten(2).shape, past_key.shape, past_value.shape],
            version=1,
        )
        self.present += [present_key, present_value]
        return out.unflatten(-1, (heads, width))


def _as_size(total: Tensor) -> int:
    """Use a tensor's value as a dimension of the exported graph."""
    size = cast(int, total.item())
    torch._check(size >= 1)
    return size


class MultiHeadAttention(nn.Module):
    """`Attention` as one operator."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads = attention.heads

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `Attention.forward`."""
        inputs = (query, key, value) if bias is None else (query, key, value, None, None, bias)
        return torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention", inputs, attrs={"num_heads": self.heads}, dtype=query.dtype,
            shape=query.shape, version=1,
        )


LOWERING = Lowering(NAME, OPSET, GroupQueryAttend, MultiHeadAttention, DynamicLengthRelativeBias)
