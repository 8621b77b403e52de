"""The ``tensorrt`` lowering: attention as ONNX's own operators of opset 24, which TensorRT fuses.

What TensorRT-RTX 1.7.1.116 does with them was tried, by compiling. TensorScatter becomes KVCacheUpdate, which writes
the cache in place and takes one of fixed capacity alone. Attention becomes one fused kernel, in float16 and bfloat16
(with heads of 32 to 128 numbers; of 8 it is refused). In float32 it is refused ("not supported by a dedicated kernel"),
so a float32 graph has its attention in basic operators. `softmax_precision` is refused too: what a softmax is computed
in is the kernel's to say. Norms ask for float32 themselves (`stash_type`), and are compiled with casts around them.
That TensorRT 10.15 and later have the same layers is from NVIDIA's documentation.

The mask is explicit: what ``is_causal`` means beside a cache differs between runtimes, and TensorRT takes one of the
two alone.

TensorRT-RTX 1.7.1 makes of a step of one new token an attention that reads the cache where it lies. In front of that
of several tokens it copies the cache, whatever was tried: masks of other shapes and of booleans, three-dimensional
inputs, reshaped and transposed keys. So an engine has sizes for one token apart (`contract.size_ranges`). Its parser
drops lengths (`nonpad_kv_seqlen`) without a word: only a mask keeps attention from unused slots. With an explicit
`scale` of 1 keys are no longer written in place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flamingo_rt.export.lowerings.basic_attention import BasicAttention, group_queries, masked, scores, weigh
from flamingo_rt.export.lowerings.lowering import CachedAttention, Lowering
from flamingo_rt.export.relative_positions import WholeBias
from flamingo_rt.model.language_model import ScoreBias
from flamingo_rt.model.layers import Attention, merge_heads, split_heads

NAME = "tensorrt"
OPSET = 24


class ScatterAttend(CachedAttention):
    """`CachedAttend` that writes new keys and values into the cache, then attends to all of it.

    past: per layer key and value [B, Hk, C, d]; cache_length int64 [B]. Unused slots are masked, but must hold
    numbers.
    """

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, positions: Tensor,
        bias: ScoreBias | None, bias_query: Tensor,
    ) -> Tensor:
        keys = self._written(self.past[2 * layer], key)
        values = self._written(self.past[2 * layer + 1], value)
        self.present += [keys, values]
        capacity, tokens = self.past[0].shape[2], query.shape[1]  # one symbol, so that layers share their mask
        allowed = torch.arange(capacity, device=query.device) <= positions[:, None, :, None]  # [B, 1, T, C]
        mask = masked(allowed, None if bias is None else bias(bias_query, positions, capacity), query.dtype)
        if fused(query.dtype):
            return _attention(query.transpose(1, 2), keys, values, mask).transpose(1, 2)
        found = scores(group_queries(query, keys.shape[1]), keys.transpose(2, 3), tokens) + mask
        return weigh(found.softmax(-1), values, tokens).transpose(1, 2)

    def _written(self, past: Tensor, new: Tensor) -> Tensor:
        """past [B, Hk, C, d] with new [B, T, Hk, d] in each row from its cache_length on."""
        return torch.onnx.ops.symbolic(
            "TensorScatter", (past, new.transpose(1, 2), self.cache_length), attrs={"axis": -2, "mode": "linear"},
            dtype=past.dtype, shape=past.shape, version=OPSET,
        )


class FusedAttention(nn.Module):
    """`Attention` through the operator, in half precision."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads, self.basic = attention.heads, BasicAttention(attention)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
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


LOWERING = Lowering(NAME, OPSET, ScatterAttend, FusedAttention, WholeBias)
