"""Low-rank updates of frozen matrices, LoRA (arXiv 2106.09685): W x + scale · B A x, of which A and B are trained.

The library for this, peft, would bring transformers with it for these few lines. torch's ``parametrize`` would form
W + scale · B A in each forward pass, keep it for the backward pass, and compute a gradient as large as W.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flamingo_rt.errors import UsageError
from flamingo_rt.model.language_model import LanguageModel
from flamingo_rt.training.merging import MergedLayer

# The linear layers of a language layer, attention's and the feed-forward's.
MATRICES = ("query", "key", "value", "output", "up", "gate", "down")
ALPHA = 16.0  # an update is scaled by ALPHA / rank, so that the learning rate may stay when the rank changes (§4.1)


class LowRankLinear(MergedLayer, nn.Linear):
    """A frozen linear layer and a trained update of low rank, which is 0 at the start.

    ``low_rank_a`` [rank, in] is random, ``low_rank_b`` [out, rank] 0; both float32 also where the weight is in half
    precision. [..., in] -> [..., out].
    """

    added = ("low_rank_a", "low_rank_b")

    def __init__(self, linear: nn.Linear, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        linear.requires_grad_(False)
        self.weight, self.bias, self.scale = linear.weight, linear.bias, scale
        exact = torch.promote_types(linear.weight.dtype, torch.float32)
        device = linear.weight.device
        a = torch.randn(rank, linear.in_features, generator=generator) * linear.in_features**-0.5
        self.low_rank_a = nn.Parameter(a.to(device, exact))
        self.low_rank_b = nn.Parameter(torch.zeros(linear.out_features, rank, device=device, dtype=exact))

    def forward(self, input: Tensor) -> Tensor:
        a, b = self.low_rank_a.to(self.weight.dtype), self.low_rank_b.to(self.weight.dtype)
        return super().forward(input) + self.scale * F.linear(F.linear(input, a), b)

    def merged(self, weight: Tensor, *added: Tensor) -> Tensor:
        """See `MergedLayer.merged`; in the updates' dtype: half precision would round a small update away."""
        a, b = added
        return weight.to(b.dtype) + self.scale * b @ a


def add_lora(
    language: LanguageModel, rank: int, seed: int = 0, matrices: Sequence[str] = MATRICES, alpha: float = ALPHA
) -> None:
    """Freeze the linear layers of these names in every language layer, and train an update of rank ``rank`` and scale
    ``alpha`` / ``rank`` beside each; a name that this kind of model does not have is passed over.

    Raises `UsageError` for a rank that is below 1 or no lower than a matrix's, a name that is not in `MATRICES`, and
    names of which the model has none.
    """
    unknown = [name for name in matrices if name not in MATRICES]
    if unknown:
        raise UsageError(f"no linear layer is called {unknown[0]!r}; known: {', '.join(MATRICES)}")
    if rank < 1:
        raise UsageError(f"the rank of low-rank updates is {rank}; it must be 1 or more")
    found = [
        (module, name, child) for layer in language.layers for module in layer.modules()
        for name, child in module.named_children() if name in matrices and isinstance(child, nn.Linear)
    ]
    if not found:
        raise UsageError(f"the language model has no linear layer called {' or '.join(matrices)}")
    for _, name, child in found:
        lowest = min(child.in_features, child.out_features)
        if rank >= lowest:
            raise UsageError(f"rank {rank} is no low rank for {name}, {child.out_features} × {child.in_features}: give "
                             f"one below {lowest}")
    generator = torch.Generator().manual_seed(seed)
    for module, name, child in found:
        setattr(module, name, LowRankLinear(child, rank, alpha / rank, generator))
