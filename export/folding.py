"""Folding of weight standardisation: NFNet's standardised convolutions become plain ones when exporting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from flamingo_rt.model.nfnet import StandardisedConv2d, standardise
from flamingo_rt.weights.lazy import LazyTensor


def fold_standardisation(module: nn.Module) -> nn.Module:
    """Replace every standardised convolution in ``module`` by a plain one of the same sizes, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, StandardisedConv2d):
                kernel, stride, padding = (
                    cast(tuple[int, int], size) for size in (child.kernel_size, child.stride, child.padding)
                )
                setattr(parent, name, nn.Conv2d(
                    child.in_channels, child.out_channels, kernel, stride=stride, padding=padding, groups=child.groups,
                ))
    return module


def folded_tensors(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Tensors of the model that `fold_standardisation` makes: weights standardised, in float32, without gains."""
    folded = dict(tensors)
    for name in tensors:
        owner, _, part = name.rpartition(".")
        weight = f"{owner}.weight"
        if part == "gain" and name.startswith("vision.") and weight in tensors:
            folded[weight] = _standardised(tensors[weight], folded.pop(name))
    return folded


def _standardised(weight: LazyTensor, gain: LazyTensor) -> LazyTensor:
    def read() -> Tensor:
        return standardise(weight.read().float(), gain.read().float())

    return replace(weight, dtype=torch.float32, read=read)
