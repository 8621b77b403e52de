"""Adaptive gradient clipping (Brock et al., arXiv 2102.06171, §4.1): a unit's gradient is bounded by its weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

LEAST_NORM = 1e-3  # of a unit's weights: a unit that starts at zero could never leave it


@torch.no_grad()
def clip_adaptively(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Scale down, in place, each unit's gradient G whose norm is above ``factor`` * max(|W|, `LEAST_NORM`), to it.

    A unit is a row of a linear layer, an output channel of a convolution; a vector (a bias, the gains of a layer) is
    one unit, as in the authors' code. The paper leaves the final linear layer out: do not pass it.
    """
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        norm, bound = unit_norms(gradient), factor * unit_norms(parameter).clamp(min=LEAST_NORM)
        gradient.mul_((bound / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1.0))


def unit_norms(tensor: Tensor) -> Tensor:
    """Euclidean norms of a parameter's units: [out, in, kh, kw] -> [out, 1, 1, 1], [out, in] -> [out, 1], and a scalar
    for what has a single dimension longer than 1."""
    if sum(size > 1 for size in tensor.shape) <= 1:
        return torch.linalg.vector_norm(tensor)
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), keepdim=True)
