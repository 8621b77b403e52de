"""The captioner of contrastive pretraining: a small decoder that reads a picture's cells and writes its text.

Its loss beside the contrast is CoCa's (Yu et al., arXiv 2205.01917, §3.2): the contrast compares the mean of the cells
alone, and leaves in each of them little of what stands there. Unlike CoCa's, this decoder shares nothing with the text
encoder, which sees the whole text at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flamingo_rt.model.text_encoder import INITIAL_DEVIATION, TextEncoderConfig


class Captioner(nn.Module):
    """cells [N, S, Dv] and text_ids int64 [N, T] -> logits [N, T, vocab] of each text's tokens, each from the cells and
    the tokens before it. Layers have the sizes of the text encoder's; positions are learnt, and T is at most its
    ``context``."""

    def __init__(self, sizes: TextEncoderConfig, cell_width: int, layers: int) -> None:
        super().__init__()
        self.cells = nn.Linear(cell_width, sizes.width)
        self.tokens = nn.Embedding(sizes.vocab_size, sizes.width)
        self.start = nn.Parameter(torch.empty(1, 1, sizes.width))
        self.positions = nn.Parameter(torch.empty(sizes.context, sizes.width))
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(sizes.width, sizes.heads, sizes.ff_width, dropout=0.0, activation="gelu",
                                       batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(sizes.width)
        self.output = nn.Linear(sizes.width, sizes.vocab_size)
        for table in (self.tokens.weight, self.start, self.positions):
            nn.init.normal_(table, std=INITIAL_DEVIATION)

    def forward(self, cells: Tensor, text_ids: Tensor) -> Tensor:
        before = torch.cat([self.start.expand(len(text_ids), 1, -1), self.tokens(text_ids[:, :-1])], dim=1)
        x = before + self.positions[: text_ids.shape[1]]  # [N, T, D]
        later = nn.Transformer.generate_square_subsequent_mask(x.shape[1], x.device, x.dtype)
        memory = self.cells(cells)
        for layer in self.layers:
            x = layer(x, memory, tgt_mask=later, tgt_is_causal=True)
        return self.output(self.norm(x))

    def losses(self, cells: Tensor, text_ids: Tensor, mask: Tensor) -> Tensor:
        """The mean cross-entropy of each text's tokens, float32 [N], so that a long text counts no more than a short
        one; mask bool [N, T] is false for padding, which is none of them. Each text has a token."""
        logits = self(cells, text_ids).float()
        losses = F.cross_entropy(logits.transpose(1, 2), text_ids, reduction="none")  # [N, T]
        return (losses * mask).sum(dim=1) / mask.sum(dim=1)
