"""Adaptive gradient clipping against a loop over units, written from the paper (arXiv 2102.06171, equation 3)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from flamingo_rt.training.adaptive_clipping import clip_adaptively

FACTOR = 0.01


def parameter(*shape: int, gradient: float, seed: int) -> nn.Parameter:
    """Random weights, with gradients of units that are of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    made = nn.Parameter(torch.randn(shape, generator=generator))
    made.grad = gradient * torch.randn(shape, generator=generator)
    if shape:
        made.grad *= torch.logspace(-3, 1, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return made


def slow_clipped(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """One unit."""
    weight_norm = max(math.sqrt(sum(value * value for value in weight.flatten().tolist())), 1e-3)
    gradient_norm = math.sqrt(sum(value * value for value in gradient.flatten().tolist()))
    if gradient_norm / weight_norm > FACTOR:
        return FACTOR * weight_norm / gradient_norm * gradient
    return gradient


@pytest.mark.parametrize("shape", [(6, 3, 3, 3), (8, 4, 1, 1), (7, 5)], ids=str)
def test_each_output_channel_is_clipped_as_the_formula_says(shape) -> None:
    made = parameter(*shape, gradient=0.02, seed=0)
    before = made.grad.clone()
    clip_adaptively([made], FACTOR)
    expected = torch.stack([slow_clipped(*unit) for unit in zip(made.detach(), before, strict=True)])
    torch.testing.assert_close(made.grad, expected, rtol=1e-6, atol=0)
    changed = [not torch.equal(one, other) for one, other in zip(made.grad, before, strict=True)]
    assert any(changed)
    assert not all(changed)


@pytest.mark.parametrize("shape", [(9,), (9, 1, 1, 1), ()], ids=str)
@pytest.mark.parametrize("gradient", [1e-9, 3.0])
def test_a_vector_or_a_scalar_is_one_unit(shape, gradient) -> None:
    made = parameter(*shape, gradient=gradient, seed=1)
    before = made.grad.clone()
    clip_adaptively([made], FACTOR)
    torch.testing.assert_close(made.grad, slow_clipped(made.detach(), before), rtol=1e-6, atol=0)
    assert torch.equal(made.grad, before) == (gradient == 1e-9)


def test_weights_of_zero_still_move() -> None:
    made = nn.Parameter(torch.zeros(2, 3))
    made.grad = torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]])
    clip_adaptively([made], FACTOR)
    torch.testing.assert_close(made.grad, torch.tensor([[6e-6, 0.0, 8e-6], [0.0, 0.0, 0.0]]))


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    made = nn.Parameter(torch.ones(2, 2))
    clip_adaptively([made], FACTOR)
    assert made.grad is None
