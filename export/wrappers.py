"""The three graphs as modules: the model's weights, with exactly the inputs and outputs of the contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flamingo_rt.contract import FLOAT_DTYPES, cached_head_width
from flamingo_rt.export.distances import TabledBias
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.model.language import Attend, ScoreBias
from flamingo_rt.model.layers import Attention


class CachedAttend(Attend, Protocol):
    """Self-attention over a cache; after the forward pass ``present`` holds each layer's new cache, key then value."""

    present: list[Tensor]


class OverCache:
    """What every `CachedAttend` starts from. past: per layer key and value; cache_length int64 [B]."""

    def __init__(self, past: Sequence[Tensor], cache_length: Tensor) -> None:
        self.past, self.cache_length = past, cache_length
        self.present: list[Tensor] = []


class PaddedHeads:
    """`CachedAttend` over a cache whose heads are wider than the model's: ``attend`` gets queries, keys and values with
    zeros behind each head, which add nothing to a score and give zeros, and are cut off again. It divides by the root
    of the width that it sees, so the queries are multiplied by what that is too much."""

    def __init__(self, attend: CachedAttend, head_width: int, cached_width: int) -> None:
        self.attend, self.head_width, self.cached_width = attend, head_width, cached_width
        self.present = attend.present

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, positions: Tensor,
        bias: ScoreBias | None, bias_query: Tensor,
    ) -> Tensor:
        query = query * (self.cached_width / self.head_width) ** 0.5
        query, key, value = (F.pad(x, (0, self.cached_width - self.head_width)) for x in (query, key, value))
        out = self.attend(layer, query, key, value, positions, bias, bias_query)
        return out[..., : self.head_width]


# From (past, cache_length [B]) to the self-attention of one forward pass.
CachedAttendFactory = Callable[[Sequence[Tensor], Tensor], CachedAttend]


@dataclass(frozen=True)
class Lowering:
    """The form in which a runtime executes attention best, and the opset of its graphs. ``attend`` is the cached
    self-attention, ``attention`` makes what takes the place of an `Attention` module, ``relative_bias`` is the form of
    relative positions, ``computes`` are the types that its graphs can compute in. Where the exporter knows a later
    opset only, ``traced_opset`` is that one, and ``finish`` makes of a traced graph one of ``opset``."""

    name: str
    opset: int
    attend: CachedAttendFactory
    attention: Callable[[Attention], nn.Module]
    relative_bias: type[TabledBias]
    computes: tuple[str, ...] = FLOAT_DTYPES
    traced_opset: int | None = None
    finish: Callable[[Any], None] = lambda model: None


class VisionEncoder(nn.Module):
    """pixel_values [N, 3, H, W], float32 -> features [N, S, Dv] of ``dtype``, the model's."""

    def __init__(self, model: Flamingo, dtype: torch.dtype) -> None:
        super().__init__()
        self.vision, self.dtype = model.vision, dtype

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.vision(pixel_values.to(self.dtype))


class ResamplerGraph(nn.Module):
    """features [M, F, S, Dv] -> media keys and values of every cross-attention layer, each [M, Hx, L, d]."""

    def __init__(self, model: Flamingo) -> None:
        super().__init__()
        self.resampler = model.resampler
        self.cross_attention = model.cross_attention

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        latents = self.resampler(features.to(self.resampler.latents.dtype))
        keys, values = self.cross_attention.keys_values(latents)
        return tuple(tensor for pair in zip(keys, values, strict=True) for tensor in pair)


class LanguageModelGraph(nn.Module):
    """New tokens, media and cache -> logits, float32, the greedy choice, and cache: prefill and decode in one graph."""

    def __init__(self, model: Flamingo, lowering: Lowering) -> None:
        super().__init__()
        self.model = model
        self.lowering = lowering

    def forward(
        self, input_ids: Tensor, cache_length: Tensor, media_index: Tensor, logits_index: Tensor,
        media: Sequence[Tensor], past: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        positions = cache_length[:, None] + torch.arange(input_ids.shape[1], device=input_ids.device)
        language = self.model.config.language
        attend, cached_width = self.lowering.attend(past, cache_length), cached_head_width(language)
        if cached_width != language.head_width:
            attend = PaddedHeads(attend, language.head_width, cached_width)
        logits = self.model.decode(
            input_ids, positions, media_index, list(media[::2]), list(media[1::2]), attend, logits_index
        )
        return *chosen(logits.to(torch.float32)), *attend.present


def chosen(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """logits float32 [B, K, V] -> themselves, the likeliest token int64 [B, K], its log-probability float32 [B, K].

    Written out, since TensorRT's parser makes of ReduceLogSumExp one that overflows: it does not subtract the largest.
    """
    highest, token = logits.topk(1)  # of equals ONNX gives the first
    return logits, token[..., 0], -(logits - highest).exp().sum(-1).log()
