"""The norm of gradients that may be divided among ranks, and clipping by it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from flamingo_rt.training.sharding import local, whole


def clip_norm(parameters: Iterable[nn.Parameter], bound: float) -> float:
    """Clip the gradients of all parameters together by their norm, over all ranks; gives the norm before that."""
    parameters = list(parameters)
    norm = gradient_norm(parameters)
    if norm > bound:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad *= bound / norm
    return norm


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """The norm of all gradients together, over all ranks."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # torch takes one kind at a time: divided among the ranks, or whole, as scalars are.
    divided = [gradient for gradient in gradients if local(gradient) is not gradient]
    undivided = [gradient for gradient in gradients if local(gradient) is gradient]
    norms = [whole(torch.nn.utils.get_total_norm(kind)) for kind in (divided, undivided) if kind]
    return math.hypot(*map(float, norms))
