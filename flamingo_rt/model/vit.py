"""The vision transformer in CLIP's form (Radford et al., arXiv 2103.00020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flamingo_rt.config import ViTConfig
from flamingo_rt.model.layers import Attention, FeedForward


class Block(nn.Module):
    """Pre-norm self-attention and feed-forward, [N, S, D] -> [N, S, D]."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.attend = Attention(config.heads)
        self.output = nn.Linear(config.width, config.width)
        self.ff_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.ff = FeedForward(config.width, config.ff_width, config.activation, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        x = x + self.output(self.attend(self.query(normed), self.key(normed), self.value(normed)))
        return x + self.ff(self.ff_norm(x))


class ViT(nn.Module):
    """pixel_values [N, 3, H, W] -> features [N, S, width]: the patch tokens row by row.

    The class token takes part in attention and is dropped from the result unless ``keep_class_token``.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        patches = (config.image_size // config.patch_size) ** 2
        self.patches = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size, bias=False)
        self.class_token = nn.Parameter(torch.randn(config.width) * config.width**-0.5)
        self.positions = nn.Parameter(torch.randn(patches + 1, config.width) * config.width**-0.5)
        self.input_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.output_norm = nn.LayerNorm(config.width, eps=config.norm_eps) if config.post_norm else None

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patches(pixel_values).flatten(2).transpose(1, 2)  # [N, S, D]
        class_token = self.class_token.expand(patches.shape[0], 1, -1)
        x = self.input_norm(torch.cat([class_token, patches], dim=1) + self.positions)
        for block in self.blocks:
            x = block(x)
        if not self.config.keep_class_token:
            x = x[:, 1:]
        return self.output_norm(x) if self.output_norm is not None else x
