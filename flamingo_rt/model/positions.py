"""Position schemes of the language model: rotary, ALiBi and Transformer-XL's relative scores.

Positions are int64 [B, T], counted from 0. Score biases are [1 or B, H, T, S] for S keys at positions 0..S-1; they
are added to the scaled scores.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flamingo_rt.config import LanguageConfig


def rotate(x: Tensor, positions: Tensor, rotary_width: int, base: float) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) of the first ``rotary_width`` elements, in the half-split layout.

    x [B, T, H, d], positions [B, T] -> [B, T, H, d].
    """
    half = rotary_width // 2
    exponents = torch.arange(half, device=x.device, dtype=torch.float32) / half
    angles = positions[:, :, None, None].float() * base**-exponents  # [B, T, 1, half]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second, rest = x[..., :half], x[..., half:rotary_width], x[..., rotary_width:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def alibi_slopes(heads: int, max_bias: float, device: torch.device | None = None) -> Tensor:
    """One slope per head, [H] (arXiv 2108.12409; for head counts that are not powers of two, MPT's interleaving)."""
    power = 2 ** math.ceil(math.log2(heads))
    slopes = 2.0 ** (-max_bias / power * torch.arange(1, power + 1, dtype=torch.float32, device=device))
    if power != heads:
        slopes = torch.cat([slopes[1::2], slopes[::2]])[:heads]
    return slopes


class AlibiBias(nn.Module):
    """A penalty that grows with distance, with a slope of its own for each head."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.heads, self.max_bias = config.heads, config.alibi_max_bias

    def forward(self, query: Tensor, positions: Tensor, keys: int) -> Tensor:
        """query [B, T, H, d], positions [B, T] -> float32 (or float64, as the query) [B, H, T, keys]."""
        exact = torch.promote_types(query.dtype, torch.float32)  # bfloat16 cannot count beyond 256
        slopes = alibi_slopes(self.heads, self.max_bias, query.device).to(exact)
        distances = torch.arange(keys, device=query.device) - positions[:, :, None]  # [B, T, keys]
        return slopes[:, None, None] * distances[:, None].to(exact)


class RelativeBias(nn.Module):
    """Transformer-XL's position score (arXiv 1901.02860, §3.3): (q + v) · W r(distance), scaled as the content is."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.width, self.heads, self.scale = config.width, config.heads, config.head_width**-0.5
        self.projection = nn.Linear(config.width, config.heads * config.head_width, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.heads, config.head_width))

    def forward(self, query: Tensor, positions: Tensor, keys: int) -> Tensor:
        """query [B, T, H, d], positions [B, T] -> [B, H, T, keys]."""
        distances = sinusoids(0, keys, self.width, query.device).to(query.dtype)  # [keys, D]
        relative = self.projection(distances).unflatten(-1, (self.heads, -1))  # [keys, H, d]
        by_distance = torch.einsum("bthd,shd->bhts", query + self.bias, relative) * self.scale
        return by_position(by_distance, positions, keys)


def sinusoids(first: int, end: int, width: int, device: torch.device | None = None) -> Tensor:
    """Embeddings r of the distances ``first`` to ``end`` - 1: float32 [end - first, width], sines, then cosines."""
    half = torch.arange(width // 2, device=device, dtype=torch.float32) / (width // 2)
    angles = torch.arange(first, end, device=device)[:, None].float() * 10000.0**-half
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def by_position(by_distance: Tensor, positions: Tensor, keys: int) -> Tensor:
    """Scores by distance [B, H, T, distances] -> by the key's position [B, H, T, keys]; those of later keys, which a
    causal mask hides, are arbitrary."""
    distances = positions[:, :, None] - torch.arange(keys, device=positions.device)  # [B, T, keys]
    return by_distance.gather(-1, distances.clamp(min=0)[:, None].expand(-1, by_distance.shape[1], -1, -1))
