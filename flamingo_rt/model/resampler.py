"""The Perceiver resampler: features of one picture or many frames to a fixed number of latents (paper §3.1, §A.1.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flamingo_rt.config import ResamplerConfig
from flamingo_rt.model.layers import Attention, FeedForward


class ResamplerLayer(nn.Module):
    """Attention of the latents to features and latents, then a feed-forward, both residual."""

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__()
        width, inner = config.width, config.heads * config.head_width
        self.feature_norm = nn.LayerNorm(width) if config.input_norms else nn.Identity()
        self.latent_norm = nn.LayerNorm(width) if config.input_norms else nn.Identity()
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.attend = Attention(config.heads)
        self.output = nn.Linear(inner, width, bias=False)
        self.ff_norm = nn.LayerNorm(width)
        self.ff = FeedForward(width, config.ff_multiplier * width, config.activation, bias=False)

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        """features [M, F * S, D], latents [M, L, D] -> latents [M, L, D]."""
        normed = self.latent_norm(latents)
        sources = torch.cat([self.feature_norm(features), normed], dim=1)
        attended = self.attend(self.query(normed), self.key(sources), self.value(sources))
        latents = latents + self.output(attended)
        return latents + self.ff(self.ff_norm(latents))


class Resampler(nn.Module):
    """features [M, F, S, Dv] -> latents [M, L, D]; F frames for each of M visuals, 1 for a picture."""

    def __init__(self, config: ResamplerConfig, feature_width: int, feature_count: int) -> None:
        super().__init__()
        self.input = nn.Linear(feature_width, config.width, bias=False) if config.input_projection else None
        self.latents = nn.Parameter(torch.randn(config.latents, config.width))
        self.time = nn.Parameter(torch.randn(config.max_frames, config.width)) if config.max_frames else None
        self.positions = nn.Parameter(torch.zeros(feature_count, config.width)) if config.spatial_positions else None
        self.layers = nn.ModuleList(ResamplerLayer(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width) if config.final_norm else None

    def forward(self, features: Tensor) -> Tensor:
        if self.input is not None:
            features = self.input(features)
        if self.positions is not None:
            features = features + self.positions
        if self.time is not None:
            features = features + frame_embeddings(self.time, features.shape[1])[:, None]
        latents = self.latents.expand(features.shape[0], -1, -1)
        features = features.flatten(1, 2)  # [M, F * S, D]
        for layer in self.layers:
            latents = layer(features, latents)
        return self.final_norm(latents) if self.final_norm is not None else latents


def frame_embeddings(table: Tensor, frames: int) -> Tensor:
    """Time embeddings [frames, D] from a table [trained, D].

    Up to the trained number, frame i takes row i; more frames are spread over the table and interpolated linearly
    (§A.1.1: trained on 8, used with 30). Written as a product with hat functions, so that ``frames`` may stay
    symbolic in an exported graph.
    """
    trained = table.shape[0]
    exact = torch.promote_types(table.dtype, torch.float32)  # in half precision, frames far apart would be one
    index = torch.arange(frames, device=table.device, dtype=exact)
    spacing = torch.clamp((trained - 1) / torch.clamp(index[-1:], min=1.0), max=1.0)
    rows = torch.arange(trained, device=table.device, dtype=exact)
    weights = F.relu(1.0 - (index[:, None] * spacing - rows).abs())  # [frames, trained], rows sum to 1
    return weights.to(table.dtype) @ table
