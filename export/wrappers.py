"""The three graphs as modules: the model's weights, with exactly the inputs and outputs of the contract."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.model.language import Attend
from flamingo_rt.model.nfnet import StandardisedConv2d


class CachedAttend(Attend, Protocol):
    """Self-attention over a cache; after the forward pass ``present`` holds each layer's new cache, key then value."""

    present: list[Tensor]


# From (past, cache_length [B]) to the attention of one forward pass; this is what a lowering provides.
CachedAttendFactory = Callable[[Sequence[Tensor], Tensor], CachedAttend]


class VisionEncoder(nn.Module):
    """pixel_values [N, 3, H, W] -> features [N, S, Dv]."""

    def __init__(self, model: Flamingo) -> None:
        super().__init__()
        self.vision = fold_standardisation(model.vision)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.vision(pixel_values)


class ResamplerGraph(nn.Module):
    """features [M, F, S, Dv] -> media keys and values of every cross-attention layer, each [M, Hx, L, d]."""

    def __init__(self, model: Flamingo) -> None:
        super().__init__()
        self.resampler = model.resampler
        self.cross_attention = model.cross_attention

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        keys, values = self.cross_attention.keys_values(self.resampler(features))
        return tuple(tensor for pair in zip(keys, values, strict=True) for tensor in pair)


class LanguageModelGraph(nn.Module):
    """New tokens, media and cache -> logits and cache: prefill and decode in one graph."""

    def __init__(self, model: Flamingo, attention: CachedAttendFactory) -> None:
        super().__init__()
        self.model = model
        self.attention = attention

    def forward(
        self, input_ids: Tensor, cache_length: Tensor, media_index: Tensor, logits_index: Tensor,
        media: Sequence[Tensor], past: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        positions = cache_length[:, None] + torch.arange(input_ids.shape[1], device=input_ids.device)
        attend = self.attention(past, cache_length)
        logits = self.model.decode(
            input_ids, positions, media_index, list(media[::2]), list(media[1::2]), attend, logits_index
        )
        return logits, *attend.present


def fold_standardisation(module: nn.Module) -> nn.Module:
    """A copy whose standardised convolutions are plain ones with the standardised weight."""
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, StandardisedConv2d):
                setattr(parent, name, _plain(child))
    return module


def _plain(conv: StandardisedConv2d) -> nn.Conv2d:
    plain = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, stride=conv.stride, padding=conv.padding,
        groups=conv.groups, device=conv.weight.device,
    )
    plain.weight = nn.Parameter(conv.standardised_weight().detach())
    plain.bias = conv.bias
    return plain
