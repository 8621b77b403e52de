"""The contrastive loss against the formula of §B.1.3 written out with loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from flamingo_rt.training.contrastive import contrastive_loss


def unit_vectors(count: int, width: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def written_out(images: torch.Tensor, texts: torch.Tensor, beta: float, smoothing: float) -> float:
    """Sum over the pairs of both cross-entropies, each to the smoothed target."""
    total, count = 0.0, len(images)
    for queries, candidates in ((images, texts), (texts, images)):
        for place in range(count):
            logits = [beta * float(queries[place].double() @ other.double()) for other in candidates]
            partition = math.log(sum(math.exp(logit) for logit in logits))
            for other, logit in enumerate(logits):
                wanted = smoothing / count + (1 - smoothing) * (other == place)
                total -= wanted * (logit - partition)
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("beta", [1.0, 14.3])
def test_the_loss_equals_the_formula(beta, smoothing) -> None:
    images, texts = unit_vectors(7, 5, 0), unit_vectors(7, 5, 1)
    loss = contrastive_loss(images, texts, torch.tensor([beta]), smoothing)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(written_out(images, texts, beta, smoothing), rel=1e-5)


@pytest.mark.parametrize(("argument", "place"), [(0, (2, 1)), (1, (0, 2)), (2, (0,))],
                         ids=["images", "texts", "inverse temperature"])
def test_the_gradient_is_that_of_the_formula(argument, place) -> None:
    """By central differences of the written-out sum, in double precision."""
    arguments = [unit_vectors(4, 3, 2), unit_vectors(4, 3, 3), torch.tensor([5.0])]
    arguments[argument].requires_grad_(True)
    contrastive_loss(*arguments, 0.1).backward()
    shifted = []
    for shift in (1e-4, -1e-4):
        moved = [each.detach().double() for each in arguments]
        moved[argument][place] += shift
        shifted.append(written_out(moved[0], moved[1], float(moved[2]), 0.1))
    assert float(arguments[argument].grad[place]) == pytest.approx((shifted[0] - shifted[1]) / 2e-4, rel=1e-4)


def test_half_precision_embeddings_are_compared_in_single_precision() -> None:
    images, texts = unit_vectors(6, 8, 4), unit_vectors(6, 8, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(images, texts, torch.tensor([20.0]), 0.1)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, contrastive_loss(images, texts, torch.tensor([20.0]), 0.1))
