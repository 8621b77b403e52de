"""Attention of a prompt as maps: where in its pictures each token looks, and how far the gates are open.

The layers attend in one call that returns no weights. Hooks on `Attention` compute them once more, from what each layer
was given, so that the model's own code stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from flamingo_rt.errors import UsageError
from flamingo_rt.model.cross_attention import GatedCrossAttention
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.model.layers import Attention, split_heads
from flamingo_rt.model.resampler import ResamplerLayer


@dataclass(frozen=True)
class AttentionMaps:
    """The attention of one prompt of T tokens and V visuals. The weights of a token sum to 1, and are all 0 where no
    visual precedes it.

    ``over_latents`` [X, Hx, T, V, L]: in X cross-attention layers of Hx heads, over the latents of each visual.
    ``over_grid``: of each visual, [L, F, h, w]: the share of each place of its F frames in each latent. The shares of a
    latent sum to 1, or to less by what a class token has.
    """

    over_latents: Tensor
    over_grid: tuple[Tensor, ...]

    def on_visual(self, visual: int, layer: int | None = None) -> Tensor:
        """The maps of all tokens over the frames of a visual [T, F, h, w]: attention to latents times the latents' own,
        as a mean over heads and over all cross-attention layers, or of one of the X."""
        weights = self.over_latents.mean(1)  # [X, T, V, L]
        chosen = weights.mean(0) if layer is None else weights[layer]
        return torch.tensordot(chosen[:, visual], self.over_grid[visual], dims=1)


class GateOpening(NamedTuple):
    """The tanh of both gates before a language layer: 0 is closed."""

    layer: int
    attention: float
    feed_forward: float


def gate_openings(model: Flamingo) -> list[GateOpening]:
    """The gates of every cross-attention layer, by the language layer that each precedes (§3.1.2)."""
    return [
        GateOpening(int(name), *(float(gate.detach().tanh()) for gate in (layer.attention_gate, layer.ff_gate)))
        for name, layer in _cross_layers(model)
    ]


@torch.no_grad()
def attention_maps(
    model: Flamingo, input_ids: Tensor, media_index: Tensor, visuals: Sequence[Tensor]
) -> AttentionMaps:
    """Read one prompt and keep where it attended.

    input_ids, media_index [T]; visuals are pixel values [F, 3, H, W], as many as ``media_index`` counts. Raises
    `UsageError` for a prompt without any.
    """
    if not visuals:
        raise UsageError("the prompt has no picture, so there is nothing to attend to: give it one")
    latents, grids = zip(*(_encoded(model, visual) for visual in visuals), strict=True)
    keys, values = model.cross_attention.keys_values(torch.cat(latents))
    keys, values = ([_joined(layer) for layer in part] for part in (keys, values))
    with recorded_weights(layer.attend for _, layer in _cross_layers(model)) as weights:
        model.decode(input_ids[None], torch.arange(len(input_ids))[None], media_index[None], keys, values)
    over_media = torch.cat(weights)  # [X, Hx, T, V * L]
    seen = (media_index > 0).to(over_media.dtype)[:, None]  # the layer silences the others, whose weights are uniform
    return AttentionMaps((over_media * seen).unflatten(-1, (len(visuals), -1)), grids)


@contextmanager
def recorded_weights(attentions: Iterable[Attention]) -> Iterator[list[Tensor]]:
    """Record the weights [B, H, T, S] of attention modules, a tensor for each call, while this context is open."""
    found: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        query, key, _, *bias = inputs
        found.append(attention_weights(query, key, cast(Attention, module).heads, *bias))

    hooks = [attention.register_forward_hook(record) for attention in attentions]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def attention_weights(query: Tensor, key: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """The weights [B, H, T, S] with which `Attention` averages values, from the arguments that it takes."""
    query, key = (x if x.ndim == 4 else split_heads(x, heads) for x in (query, key))
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    return (scores if bias is None else scores + bias).softmax(-1)


def shares_of_features(weights: Sequence[Tensor], features: int) -> Tensor:
    """The share of each feature in each latent [L, features], from a resampler's weights [H, L, features + L] by layer.

    Attention rollout (Abnar and Zuidema, arXiv 2005.00928): heads are averaged, what a latent takes from other latents
    is followed to their features, and the residual connection counts as much as the attention.
    """
    shares = weights[0].new_zeros(weights[0].shape[1], features)
    for layer in weights:
        to_features, to_latents = layer.mean(0).split([features, layer.shape[1]], dim=1)
        shares = (shares + to_features + to_latents @ shares) / 2
    return shares / shares.sum(1, keepdim=True)


def _cross_layers(model: Flamingo) -> list[tuple[str, GatedCrossAttention]]:
    return [(name, cast(GatedCrossAttention, layer)) for name, layer in model.cross_attention.layers.items()]


def _encoded(model: Flamingo, visual: Tensor) -> tuple[Tensor, Tensor]:
    """Latents [1, L, D] of a visual, and the share of each place in them [L, F, h, w]."""
    frames, count = visual.shape[0], model.config.vision.feature_count
    with recorded_weights(cast(ResamplerLayer, layer).attend for layer in model.resampler.layers) as weights:
        latents = model.encode(visual[None])
    shares = shares_of_features([layer[0] for layer in weights], frames * count).unflatten(1, (frames, count))
    side = math.isqrt(count)
    return latents, shares[..., count - side * side :].unflatten(-1, (side, side))  # a class token comes first


def _joined(media: Tensor) -> Tensor:
    """Keys or values of all visuals [V, Hx, L, d] as those of one row [1, Hx, V * L, d]."""
    return media.transpose(0, 1).flatten(1, 2)[None]
