"""The two-way contrastive loss over pictures and their texts (§B.1.3).

Each picture is compared with every text of the batch, and each text with every picture: the cross-entropy of finding
its partner, both ways. Pictures with the same text, such as those of one class, are each other's partners too: each is
wanted as much (arXiv 2204.03610, §3.1), where the paper's batches of captions have hardly any. With several ranks the
batch is that of all of them: features are gathered with their gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(
    images: Tensor, texts: Tensor, keys: Tensor, inverse_temperature: Tensor, label_smoothing: float
) -> Tensor:
    """The sum, over this rank's pairs, of the cross-entropy from picture to text and from text to picture.

    images, texts [N, D] of this rank, of length 1, row i of both being a pair; every rank has the same N. keys int64
    [N] are equal for pairs with the same text. inverse_temperature multiplies the cosines. The sums of all ranks, added
    up and divided by the number of all pairs, are the loss of the whole batch, and so are their gradients.
    """
    all_images, all_texts = gather_rows(images), gather_rows(texts)  # [ranks * N, D]
    partners = keys[:, None] == gather_rows(keys)
    text_logits = inverse_temperature * cosines(images, all_texts)
    image_logits = inverse_temperature * cosines(texts, all_images)
    return sum_cross_entropy(text_logits, partners, label_smoothing) + sum_cross_entropy(
        image_logits, partners, label_smoothing)


def cosines(vectors: Tensor, others: Tensor) -> Tensor:
    """Products [N, M] of unit vectors [N, D] and [M, D], in float32 in any `torch.autocast`: in bfloat16 they would
    have three digits, too few to rank."""
    with torch.autocast(vectors.device.type, enabled=False):
        return vectors.float() @ others.float().T


def sum_cross_entropy(logits: Tensor, wanted: Tensor, label_smoothing: float) -> Tensor:
    """logits [N, K], wanted bool [N, K], in each row one or more -> the sum of the cross-entropies to (1 - s) * wanted
    / their number + s / K."""
    shares = wanted / wanted.sum(1, keepdim=True)
    return F.cross_entropy(logits, shares, label_smoothing=label_smoothing, reduction="sum")


def gather_rows(rows: Tensor) -> Tensor:
    """The rows [N, D] of every rank one below the other, [ranks * N, D], in the order of the ranks; each rank gets the
    gradient that its rows have in the losses of all ranks, summed. With one process, the rows themselves."""
    return _GatheredRows.apply(rows) if _several_ranks() else rows


def _several_ranks() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


class _GatheredRows(torch.autograd.Function):
    """torch.distributed's own gathering with a gradient is deprecated, and its successor is not public yet."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = len(rows)
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)  # every backend has it; gloo has no sum that leaves each rank its part alone
        first = ctx.rows * dist.get_rank()
        return gradient[first : first + ctx.rows]
