"""Trained embeddings of a few tokens, ``<image>`` and ``<|endofchunk|>``, beside a frozen table (§3).

The table gets no gradient and no buffer for one, which at 50,000 tokens would be larger than everything that is trained
of a small model. The trained rows are merged into it when a checkpoint is written (`merging.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flamingo_rt.errors import UsageError
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.model.language_model import TokenEmbedding
from flamingo_rt.training.merging import MergedLayer


class _NewRows(MergedLayer):
    """Part that embedding and head share: rows ``ids`` int64 [K] of ``weight`` [vocab, D] are read from ``new_rows``
    [K, D] instead, which are float32 also where the table is in half precision."""

    added = ("new_rows",)
    ids: Tensor

    def merged(self, weight: Tensor, *added: Tensor) -> Tensor:
        """See `MergedLayer.merged`; in the table's dtype, in which the rows are used."""
        return weight.index_copy(0, self.ids.to(weight.device), added[0].to(weight.dtype))


class EmbeddingWithNewRows(_NewRows, TokenEmbedding):
    """A frozen table of embeddings, some rows of which are trained apart from it. With ``only_output`` they have
    gradients as rows of the head alone: what reads the embeddings then needs no backward pass for them."""

    places: Tensor  # int64 [vocab]: the new row of each token, -1 where it has none

    def __init__(self, table: TokenEmbedding, ids: Tensor, only_output: bool = False) -> None:
        """ids int64 [K]."""
        super().__init__(table.num_embeddings, table.embedding_dim, _weight=table.weight.detach())
        self.weight, self._only_output = table.weight, only_output
        self.new_rows = _trained_rows(table.weight, ids)
        self.register_buffer("ids", ids, persistent=False)
        places = torch.full((table.num_embeddings,), -1, device=ids.device)
        places[ids] = torch.arange(len(ids), device=ids.device)
        self.register_buffer("places", places, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """ids [B, T] -> [B, T, D], in the table's dtype."""
        frozen, places = super().forward(input), self.places[input]
        rows = self.new_rows.detach() if self._only_output else self.new_rows
        new = F.embedding(places.clamp(min=0), rows.to(self.weight.dtype))
        return torch.where(places[..., None] >= 0, new, frozen)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] -> logits [..., vocab]."""
        new = F.linear(hidden, self.new_rows.to(self.weight.dtype))  # [..., K]
        return super().logits(hidden).index_copy_(-1, self.ids, new)


class HeadWithNewRows(_NewRows, nn.Linear):
    """A frozen head, some rows of whose weight are trained apart from it; its bias is frozen too."""

    def __init__(self, head: nn.Linear, ids: Tensor) -> None:
        """ids int64 [K]."""
        super().__init__(head.in_features, head.out_features, bias=False, device="meta")
        self.weight, self.bias = head.weight, head.bias
        self.new_rows = _trained_rows(head.weight, ids)
        self.register_buffer("ids", ids, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """hidden [..., D] -> logits [..., vocab]."""
        bias = None if self.bias is None else self.bias[self.ids]
        new = F.linear(input, self.new_rows.to(self.weight.dtype), bias)  # [..., K]
        return super().forward(input).index_copy_(-1, self.ids, new)


class TrainedTable(TokenEmbedding):
    """A table of embeddings that is trained in float32, and used in ``used_in``, the frozen language model's dtype."""

    def __init__(self, table: Tensor, used_in: torch.dtype) -> None:
        """table [vocab, D]."""
        super().__init__(table.shape[0], table.shape[1], _weight=table)
        self.used_in = used_in

    def forward(self, input: Tensor) -> Tensor:
        """ids [B, T] -> [B, T, D]."""
        return super().forward(input).to(self.used_in)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] -> logits [..., vocab]."""
        return F.linear(hidden, self.weight.to(self.used_in))


def _trained_rows(weight: Tensor, ids: Tensor) -> nn.Parameter:
    """Copies of the rows ``ids``, in float32 or more."""
    rows = weight.detach()[ids]
    return nn.Parameter(rows.to(torch.promote_types(rows.dtype, torch.float32)))


def train_new_tokens(
    model: Flamingo, ids: Sequence[int], whole_table: Tensor | None = None, only_output: bool = False
) -> None:
    """Train the embeddings of ``ids``, and their rows of the head where it is not tied, as ``new_rows`` beside tables
    that are frozen; without ids the tables are just frozen. With ``whole_table`` [vocab, D], the embeddings before they
    were rounded, all of them are trained from there on; of a head that is not tied it is still the rows of ``ids``.
    With ``only_output`` rows have gradients from the logits alone, and embeddings that are not the head stay frozen.
    Raises `UsageError` for an id that is no token's, or given twice."""
    language = model.language
    vocab = language.config.vocab_size
    for token in ids:
        if not 0 <= token < vocab:
            raise UsageError(f"token id {token} is not from 0 to {vocab - 1}: the language model has {vocab} tokens")
    if len(set(ids)) != len(ids):
        raise UsageError(f"token ids {list(ids)} hold one twice: give each once")
    language.embedding.weight.requires_grad_(False)
    if whole_table is not None:
        language.embedding = TrainedTable(whole_table, language.embedding.weight.dtype)
    if language.head is not None:
        language.head.requires_grad_(False)
    if not ids:
        return
    rows = torch.tensor(list(ids), device=language.embedding.weight.device)
    if whole_table is None and not (only_output and language.head is not None):
        language.embedding = EmbeddingWithNewRows(language.embedding, rows, only_output)
    if language.head is not None:
        language.head = HeadWithNewRows(language.head, rows)
