"""Layers that add trained weights to a frozen one, and a model's tensors with the added ones merged into the frozen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from flamingo_rt.weights.lazy import LazyTensor


class MergedLayer(ABC):
    """A layer with a frozen ``weight`` and trained tensors beside it, whose names are ``added``."""

    added: ClassVar[tuple[str, ...]]

    @abstractmethod
    def merged(self, weight: Tensor, *added: Tensor) -> Tensor:
        """The weight of a plain layer that computes the same; ``weight`` stays as it is."""


@torch.no_grad()
def merged_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor] | None = None, given: Mapping[str, LazyTensor] | None = None
) -> dict[str, Tensor]:
    """The state dict that ``model`` had if each `MergedLayer` in it were a plain layer: the names and the order of the
    model without added weights.

    ``tensors`` are those of the model's state dict that are wanted, in place of the model's own; one that is divided
    among ranks must be whole. ``given`` are tensors that the model was loaded from: weights are merged into those,
    which the model may hold rounded. The model stays as it is.
    """
    found = dict(tensors if tensors is not None else model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, MergedLayer):
            prefix = f"{name}." if name else ""
            added = [found.pop(f"{prefix}{part}") for part in module.added]
            weight = found[f"{prefix}weight"]
            if given is not None and f"{prefix}weight" in given:
                weight = given[f"{prefix}weight"].to(torch.float32).read()
            found[f"{prefix}weight"] = module.merged(weight, *added)
    return found
