"""The three graphs as PyTorch modules: the model's weights, with exactly the inputs and outputs of the contract."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flamingo_rt.contract import cached_head_width
from flamingo_rt.export.lowerings.lowering import CachedAttend, Lowering, PaddedHeads
from flamingo_rt.model.flamingo import Flamingo


class VisionEncoder(nn.Module):
    """pixel_values [N, 3, H, W], float32 -> features [N, S, Dv] in ``dtype``, the model's."""

    def __init__(self, model: Flamingo, dtype: torch.dtype) -> None:
        super().__init__()
        self.vision, self.dtype = model.vision, dtype

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode pictures and frames."""
        return self.vision(pixel_values.to(self.dtype))


class ResamplerGraph(nn.Module):
    """features [M, F, S, Dv] -> media keys and values of every cross-attention layer, each [M, Hx, L, d]."""

    def __init__(self, model: Flamingo) -> None:
        super().__init__()
        self.resampler = model.resampler
        self.cross_attention = model.cross_attention

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """Resample each visual to latents, and project them for all cross-attention layers: key, value, key, …"""
        latents = self.resampler(features.to(self.resampler.latents.dtype))
        keys, values = self.cross_attention.keys_values(latents)
        return tuple(tensor for pair in zip(keys, values, strict=True) for tensor in pair)


class LanguageModelGraph(nn.Module):
    """New tokens, media and cache -> logits, greedy choice and new cache: prefill and decode in one graph."""

    def __init__(self, model: Flamingo, lowering: Lowering) -> None:
        super().__init__()
        self.model = model
        self.lowering = lowering

    def forward(
        self, input_ids: Tensor, cache_length: Tensor, media_index: Tensor, logits_index: Tensor,
        media: Sequence[Tensor], past: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """Run one prefill or decode step; see the contract's language model for the tensors."""
        positions = cache_length[:, None] + torch.arange(input_ids.shape[1], device=input_ids.device)
        language = self.model.config.language
        attend: CachedAttend = self.lowering.attend(past, cache_length)
        cached_width = cached_head_width(language)
        if cached_width != language.head_width:
            attend = PaddedHeads(attend, language.head_width, cached_width)
        logits = self.model.decode(
            input_ids, positions, media_index, list(media[::2]), list(media[1::2]), attend, logits_index
        ).to(torch.float32)
        return logits, *greedy_choice(logits), *attend.present


def greedy_choice(logits: Tensor) -> tuple[Tensor, Tensor]:
    """logits float32 [B, K, V] -> the likeliest token int64 [B, K] and its log-probability float32 [B, K].

    The log-sum-exp is written out because TensorRT's ReduceLogSumExp overflows: it does not subtract the largest.
    """
    highest, token = logits.topk(1)  # the first of equals, by ONNX's definition
    return token[..., 0], -(logits - highest).exp().sum(-1).log()
