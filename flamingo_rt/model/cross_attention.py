"""Gated cross-attention, the layers that let a frozen language model see (paper §3.1, figure 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.model.layers import Attention, FeedForward, make_norm, split_heads


@dataclass(frozen=True)
class Media:
    """Keys, values and mask that the cross-attention layers of one forward pass read.

    ``keys`` and ``values``: per cross-attention layer [B, Hx, S, d], S = V * L: the latents of a row's visuals, one
    visual after the other. ``bias`` [B, 1, T, S] is 0 where a token may look and the lowest number elsewhere.
    ``present`` [B, T, 1] is 1 where a visual precedes the token.
    """

    keys: list[Tensor]
    values: list[Tensor]
    bias: Tensor
    present: Tensor

    def of(self, index: int) -> Seen:
        """The part that one layer reads, by its number among the cross-attention layers. A layer that was given the
        number instead would be compiled anew for each one."""
        return Seen(self.keys[index], self.values[index], self.bias, self.present)


class Seen(NamedTuple):
    """Keys and values [B, Hx, S, d] of one cross-attention layer, ``bias`` and ``present`` as in `Media`."""

    keys: Tensor
    values: Tensor
    bias: Tensor
    present: Tensor


def one_after_the_other(media: Tensor) -> Tensor:
    """Join the visuals of a row: keys or values [B, V, Hx, L, d] -> [B, Hx, V * L, d]."""
    return media.transpose(1, 2).flatten(2, 3)


def media_mask(
    media_index: Tensor, keys: int, latents: int, attend: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """``bias`` and ``present`` of `Media`, from ``media_index``, the paper's phi (§3.1.3).

    media_index [B, T] names the last visual before each token: 0 none, i the i-th of V. ``keys`` is S.
    """
    slots = torch.arange(keys, device=media_index.device) // latents + 1
    index = media_index[:, :, None]
    allowed = (slots <= index) if attend == "all" else (slots == index)  # [B, T, S]
    zero = torch.zeros((), dtype=dtype, device=media_index.device)
    bias = torch.where(allowed, zero, torch.finfo(dtype).min / 2)  # with a score added it must not reach infinity
    return bias[:, None], (index > 0).to(dtype)


class GatedCrossAttention(nn.Module):
    """y += tanh(a) · attention(y, media); y += tanh(b) · ffw(y). With both gates at 0, the start, nothing changes."""

    def __init__(self, model: FlamingoConfig) -> None:
        super().__init__()
        config, width = model.cross_attention, model.language.width
        inner, media_width = config.heads * config.head_width, config.media_width or model.resampler.width
        self.heads = config.heads
        self.attention_norm = make_norm(config.norm, width, config.norm_eps, config.norm_bias)
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(media_width, inner, bias=False)
        self.value = nn.Linear(media_width, inner, bias=False)
        self.attend = Attention(config.heads)
        self.output = nn.Linear(inner, width, bias=False)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.ff_norm = make_norm(config.norm, width, config.norm_eps, config.norm_bias)
        self.ff = FeedForward(width, config.ff_multiplier * width, config.activation, bias=False)
        self.ff_gate = nn.Parameter(torch.zeros(1))

    def keys_values(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """latents [M, L, Dm] -> keys and values [M, Hx, L, d]: once per visual, never per token."""
        return split_heads(self.key(latents), self.heads), split_heads(self.value(latents), self.heads)

    def forward(self, hidden: Tensor, seen: Seen | None) -> Tensor:
        """hidden [B, T, D] -> [B, T, D]; without anything seen, feed-forward only."""
        if seen is not None:
            hidden = hidden + self._open(self.attention_gate, hidden) * self._attend(hidden, seen)
        return hidden + self._open(self.ff_gate, hidden) * self.ff(self.ff_norm(hidden))

    def _open(self, gate: nn.Parameter, hidden: Tensor) -> Tensor:
        """The opening of a gate, in the type of the hidden state: a float32 gate would make that float32 too."""
        return gate.tanh().to(hidden.dtype)

    def _attend(self, hidden: Tensor, seen: Seen) -> Tensor:
        query = self.query(self.attention_norm(hidden))  # [B, T, Hx * d]
        attended = self.attend(query, seen.keys, seen.values, seen.bias)
        # A token without a visual sees a uniform average, not nothing: silence it.
        return self.output(attended) * seen.present


class CrossAttention(nn.Module):
    """All gated layers of a model, keyed by the language layer each precedes, and the projection they share."""

    def __init__(self, model: FlamingoConfig) -> None:
        super().__init__()
        width = model.cross_attention.media_width
        self.attend, self.latents = model.cross_attention.attend, model.resampler.latents
        self.projection = nn.Linear(model.resampler.width, width, bias=False) if width else None
        self.layers = nn.ModuleDict({str(layer): GatedCrossAttention(model) for layer in model.cross_layers})

    def keys_values(self, latents: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """latents [M, L, Dm] -> keys and values of every layer, each [M, Hx, L, d]."""
        if self.projection is not None:
            latents = self.projection(latents)
        pairs = [cast(GatedCrossAttention, layer).keys_values(latents) for layer in self.layers.values()]
        return [key for key, _ in pairs], [value for _, value in pairs]

    def media(self, media_index: Tensor, keys: list[Tensor], values: list[Tensor]) -> Media:
        """`Media` for tokens with this media_index [B, T]; keys and values per layer [B, Hx, S, d]."""
        bias, present = media_mask(media_index, keys[0].shape[2], self.latents, self.attend, keys[0].dtype)
        return Media(keys, values, bias, present)

    def forward(self, layer: int, hidden: Tensor, media: Media | None) -> Tensor:
        """Apply the gated layer before language layer ``layer``, if there is one: hidden [B, T, D] -> [B, T, D]."""
        name = str(layer)
        if name not in self.layers:
            return hidden
        return self.layers[name](hidden, None if media is None else media.of(list(self.layers).index(name)))
