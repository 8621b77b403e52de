"""The ``tensorrt-classic`` lowering: basic operators of opset 17, for TensorRT 8.6 to 10.14.

By NVIDIA's documentation, these versions have no layer that writes into an input (KVCacheUpdate came with 10.15), and
8.6 reads operators up to opset 17. None of them was run here; the graphs were compiled with TensorRT-RTX 1.7.1.116,
which accepts them too. Without such a layer, the graph reads the cache and outputs only the keys and values of the new
tokens, which the backend puts in their place. The cache is laid out slot first, [C, B, Hk, d]: a slot of all rows is
contiguous, so that an output can be bound at its place in the cache, and an input of fewer slots is the same memory
with a smaller shape. A step thus reads the cached tokens, not the capacity. Scores over the cache and over the new
tokens are joined before the softmax; joining the keys would copy the cache.

Norms and softmax are float32 in the graph. TensorRT 8.6 in FP16 mode chooses each layer's type itself and may compute
them in half precision all the same (NVIDIA's documentation, "weak typing"); later versions keep the graph's types.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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

NAME = "tensorrt-classic"
OPSET = 17
TRACED = 18  # the exporter's lowest opset
COMPUTES = ("float32", "float16")  # Conv, among others, has no bfloat16 in this opset


class AppendingAttend(CachedAttention):
    """`CachedAttend` with separate scores over the cached tokens and over the new ones.

    past: per layer key and value [C, B, Hk, d]; cache_length int64 [B]; present: of the new tokens, [T, B, Hk, d].
    Unused slots are masked, but must hold finite numbers.
    """

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, positions: Tensor,
        bias: ScoreBias | None, bias_query: Tensor,
    ) -> Tensor:
        """See `Attend`."""
        past_key, past_value = self.past[2 * layer], self.past[2 * layer + 1]
        slots, tokens, kv_heads = self.past[0].shape[0], query.shape[1], key.shape[2]
        self.present += [key.transpose(0, 1), value.transpose(0, 1)]
        grouped = group_queries(query, kv_heads)
        cached_scores = grouped_scores(grouped, past_key.permute(1, 2, 3, 0), tokens)
        new_scores = grouped_scores(grouped, key.permute(0, 2, 3, 1), tokens)
        cached_mask, new_mask = self._masks(slots, tokens, positions, bias, bias_query)
        weights = torch.cat([cached_scores + cached_mask, new_scores + new_mask], dim=-1).softmax(-1).to(value.dtype)
        out = weighted_values(weights[..., :slots], past_value.permute(1, 2, 0, 3), tokens)
        return (out + weighted_values(weights[..., slots:], value.transpose(1, 2), tokens)).transpose(1, 2)

    def _masks(
        self, slots: int, tokens: int, positions: Tensor, bias: ScoreBias | None, bias_query: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Masks to add to the scores: over the cache [B, 1 or H, T or 1, C], over the new tokens [.., T, T]."""
        device = positions.device
        cached = (torch.arange(slots, device=device) < self.cache_length[:, None])[:, None, None]  # [B, 1, 1, C]
        new = torch.arange(tokens, device=device)
        earlier = new <= new[:, None]  # [T, T]
        if bias is None:
            return masked_scores(cached), masked_scores(earlier)
        # Biases depend on distances alone, so among the new tokens positions may count from 0. The cached ones need
        # distances beyond the number of slots.
        over_cache = bias(bias_query, positions, slots + tokens)[..., :slots]
        over_new = bias(bias_query, new.expand_as(positions), tokens)
        return masked_scores(cached, over_cache), masked_scores(earlier, over_new)


def to_opset_17(model: Any) -> None:
    """Rewrite an onnx_ir model of opset 18 in place: the axes of reductions become attributes, Split loses its number
    of outputs. Raises `ValueError` for axes that are not constants."""
    import onnx_ir

    for node in list(model.graph.all_nodes()):
        if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and len(node.inputs) > 1:
            axes = onnx_ir.convenience.get_const_tensor(node.inputs[1])
            if axes is None:
                raise ValueError(f"{node.op_type} {node.name}: its axes are computed")
            node.attributes.add(onnx_ir.AttrInt64s("axes", axes.numpy().tolist()))
            node.attributes.pop("noop_with_empty_axes", None)
            node.resize_inputs(1)
        if node.op_type == "Split":
            node.attributes.pop("num_outputs", None)
        node.version = OPSET
    model.graph.opset_imports[""] = OPSET


LOWERING = Lowering(
    NAME, OPSET, AppendingAttend, BasicAttention, FixedLengthRelativeBias, COMPUTES, traced_opset=TRACED,
    finish=to_opset_17,
)
