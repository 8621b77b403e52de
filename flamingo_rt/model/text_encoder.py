"""The text encoder of contrastive pretraining: BERT's layers, mean-pooled (§B.1.3; Devlin et al., arXiv 1810.04805)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flamingo_rt.config import require, require_sizes
from flamingo_rt.model.layers import Attention, FeedForward

INITIAL_DEVIATION = 0.02  # of every matrix and embedding, as in BERT


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of the text encoder; the default is BERT-mini with a vocabulary of 32,000. ``context``: the most tokens of
    a text."""

    vocab_size: int = 32000
    context: int = 64
    width: int = 256
    layers: int = 4
    heads: int = 4
    ff_width: int = 1024
    norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        require_sizes(self)
        require(self.width % self.heads == 0, f"text width {self.width} is no multiple of {self.heads} heads")


class TextLayer(nn.Module):
    """Self-attention over all tokens of a text and a feed-forward, each with the norm after its sum (post-norm)."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.attend = Attention(config.heads)
        self.output = nn.Linear(config.width, config.width)
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.ff = FeedForward(config.width, config.ff_width, "gelu", bias=True)
        self.ff_norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x [N, T, D]; seen bool [N, 1, 1, T], true for the tokens that are attended to -> [N, T, D]."""
        attended = self.attend(self.query(x), self.key(x), self.value(x), seen)
        x = self.attention_norm(x + self.output(attended))
        return self.ff_norm(x + self.ff(x))


class TextEncoder(nn.Module):
    """text_ids int64 [N, T] and mask bool [N, T], false for padding -> the mean over each text's tokens, [N, D].

    Positions are learnt. Every text has at least one token that is no padding.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(config.context, config.width))
        self.input_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config.layers))
        nn.init.normal_(self.positions, std=INITIAL_DEVIATION)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, text_ids: Tensor, mask: Tensor) -> Tensor:
        x = self.input_norm(self.tokens(text_ids) + self.positions[: text_ids.shape[1]])  # [N, T, D]
        seen = mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, seen)
        kept = mask[:, :, None].to(x.dtype)
        return (x * kept).sum(dim=1) / kept.sum(dim=1)
