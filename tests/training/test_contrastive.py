"""The contrastive loss against the formula of §B.1.3 written out with loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from flamingo_rt.training.contrastive import contrastive_loss


def unit_vectors(count: int, width: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def written_out(images: torch.Tensor, texts: torch.Tensor, keys: torch.Tensor, beta: float, smoothing: float) -> float:
    """Sum over the pairs of both cross-entropies, each to the smoothed target."""
    total, count, names = 0.0, len(images), keys.tolist()
    for queries, candidates in ((images, texts), (texts, images)):
        for place in range(count):
            logits = [beta * float(queries[place].double() @ other.double()) for other in candidates]
            partition = math.log(sum(math.exp(logit) for logit in logits))
            for other, logit in enumerate(logits):
                partner = (names[other] == names[place]) / names.count(names[place])
                wanted = smoothing / count + (1 - smoothing) * partner
                total -= wanted * (logit - partition)
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("beta", [1.0, 14.3])
def test_the_loss_equals_the_formula(beta, smoothing) -> None:
    images, texts = unit_vectors(7, 5, 0), unit_vectors(7, 5, 1)
    for keys in (torch.arange(7), torch.tensor([4, 2, 4, 1, 2, 4, 9])):
        loss = contrastive_loss(images, texts, keys, torch.tensor([beta]), smoothing)
        assert loss.shape == ()
        assert loss.item() == pytest.approx(written_out(images, texts, keys, beta, smoothing), rel=1e-5)


def test_pairs_with_one_text_can_be_learnt_to_the_end() -> None:
    images = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), dim=-1)
    keys = torch.tensor([3, 3, 5])
    loss = contrastive_loss(images, images, keys, torch.tensor([100.0]), 0.0)
    floor = 4 * math.log(2)  # two wanted alike: the loss of each is the logarithm of their number
    assert loss.item() == pytest.approx(floor, rel=1e-5)
    variable = images.clone().requires_grad_(True)
    contrastive_loss(variable, images, keys, torch.tensor([100.0]), 0.0).backward()
    assert float(variable.grad.abs().max()) < 1e-4, "nothing pushes them apart"


@pytest.mark.parametrize(("argument", "place"), [(0, (2, 1)), (1, (0, 2)), (2, (0,))],
                         ids=["images", "texts", "inverse temperature"])
def test_the_gradient_is_that_of_the_formula(argument, place) -> None:
    """By central differences of the written-out sum, in double precision."""
    arguments = [unit_vectors(4, 3, 2), unit_vectors(4, 3, 3), torch.tensor([5.0])]
    keys = torch.tensor([0, 1, 1, 2])
    arguments[argument].requires_grad_(True)
    contrastive_loss(*arguments[:2], keys, arguments[2], 0.1).backward()
    shifted = []
    for shift in (1e-4, -1e-4):
        moved = [each.detach().double() for each in arguments]
        moved[argument][place] += shift
        shifted.append(written_out(moved[0], moved[1], keys, float(moved[2]), 0.1))
    assert float(arguments[argument].grad[place]) == pytest.approx((shifted[0] - shifted[1]) / 2e-4, rel=1e-4)


def test_half_precision_embeddings_are_compared_in_single_precision() -> None:
    images, texts = unit_vectors(6, 8, 4), unit_vectors(6, 8, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(images, texts, torch.arange(6), torch.tensor([20.0]), 0.1)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, contrastive_loss(images, texts, torch.arange(6), torch.tensor([20.0]), 0.1))
