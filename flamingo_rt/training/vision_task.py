"""Task for the vision encoder alone: predict the set of tokens in the picture's caption."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flamingo_rt.config import FlamingoConfig

INITIAL_LOGIT = -5.0  # most tokens are in no caption


class VisionTask(nn.Module):
    """Predicts a caption's tokens, as a set, from the features: a token counts as present when any cell predicts it."""

    def __init__(self, config: FlamingoConfig) -> None:
        super().__init__()
        self.head = nn.Linear(config.vision.width, config.language.vocab_size)
        nn.init.constant_(self.head.bias, INITIAL_LOGIT)

    def forward(self, features: Tensor, caption_tokens: Tensor) -> Tensor:
        """features [N, S, Dv], caption_tokens float [N, vocab] of 0 and 1 -> binary cross-entropy per picture."""
        cells = self.head(features)  # [N, S, vocab]
        logits = torch.logsumexp(cells, dim=1) - math.log(cells.shape[1])
        return F.binary_cross_entropy_with_logits(logits, caption_tokens, reduction="sum") / len(features)
