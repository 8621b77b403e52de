"""The three graphs as modules: the model's weights, with exactly the inputs and outputs of the contract."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flamingo_rt.contract import cached_head_width
from flamingo_rt.export.lowerings.lowering import Lowering, PaddedHeads
from flamingo_rt.model.flamingo import Flamingo


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
