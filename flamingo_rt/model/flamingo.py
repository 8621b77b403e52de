"""The whole model: vision encoder, resampler, and a language model with gated cross-attention (paper §3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flamingo_rt.config import ExternalVisionConfig, FlamingoConfig, NFNetConfig, VisionConfig
from flamingo_rt.model.cross_attention import CrossAttention, one_after_the_other
from flamingo_rt.model.external_encoder import ExternalEncoder
from flamingo_rt.model.language_model import Attend, LanguageModel, attend_without_cache
from flamingo_rt.model.nfnet import NFNet
from flamingo_rt.model.resampler import Resampler
from flamingo_rt.model.vit import ViT

IGNORED_LABEL = -100


def make_vision_encoder(config: VisionConfig) -> nn.Module:
    """An encoder with random weights, or an external one without its graph: pixel_values [N, 3, H, W] -> features
    [N, S, width]."""
    if isinstance(config, ExternalVisionConfig):
        return ExternalEncoder(config)
    return NFNet(config) if isinstance(config, NFNetConfig) else ViT(config)


class Flamingo(nn.Module):
    """A Flamingo model with random weights; `flamingo_rt.checkpoints` reads and writes them."""

    def __init__(self, config: FlamingoConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = make_vision_encoder(config.vision)
        self.resampler = Resampler(config.resampler, config.vision.width, config.vision.feature_count)
        self.cross_attention = CrossAttention(config)
        self.language = LanguageModel(config.language)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [M, F, 3, H, W] (F frames of M visuals) -> latents [M, L, D]."""
        features = self.vision(pixel_values.flatten(0, 1))
        return self.resampler(features.unflatten(0, pixel_values.shape[:2]))

    def decode(
        self,
        input_ids: Tensor,
        positions: Tensor,
        media_index: Tensor,
        keys: list[Tensor] | None,
        values: list[Tensor] | None,
        attend: Attend = attend_without_cache,
        logits_index: Tensor | None = None,
    ) -> Tensor:
        """Run the language model with its cross-attention.

        input_ids, positions, media_index [B, T]; keys and values per layer [B, Hx, V * L, d], or None for a batch
        without any visual -> logits [B, T, vocab], or [B, K, vocab] at ``logits_index`` [B, K].
        """
        media = None
        if keys is not None and values is not None:
            media = self.cross_attention.media(media_index, keys, values)
        return self.language(input_ids, positions, attend, self.cross_attention, media, logits_index)

    def forward(
        self,
        input_ids: Tensor,
        media_index: Tensor,
        pixel_values: Tensor | None = None,
        rows: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Logits [B, T, vocab] and, with labels, the mean cross-entropy of the next token.

        input_ids, media_index [B, T]; pixel_values [M, F, 3, H, W] or None; rows [B, V] picks each row's visuals
        among the M (any index where a row has fewer), so that several texts share one encoding; labels [B, T] are
        aligned with input_ids, `IGNORED_LABEL` where no loss is wanted.
        """
        if (pixel_values is None) != (rows is None):
            raise ValueError("pixel_values and rows go together: rows says which row sees which visual")
        latents = self.encode(pixel_values) if pixel_values is not None else None
        return self.read(input_ids, media_index, latents, rows, labels)

    def read(
        self,
        input_ids: Tensor,
        media_index: Tensor,
        latents: Tensor | None,
        rows: Tensor | None,
        labels: Tensor | None = None,
        logits_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """`forward` from the latents [M, L, D] of `encode` instead of pixels; without labels, logits can be had at
        ``logits_index`` [B, K] alone."""
        keys = values = None
        if latents is not None and rows is not None:
            all_keys, all_values = self.cross_attention.keys_values(latents)
            keys, values = ([one_after_the_other(layer[rows]) for layer in part] for part in (all_keys, all_values))
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        logits = self.decode(input_ids, positions, media_index, keys, values, logits_index=logits_index)
        if labels is None:
            return logits, None
        loss = F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED_LABEL
        )
        return logits, loss

    def freeze(self, *, vision: bool = True, language: bool = True) -> None:
        """Stop training the pretrained parts (§3); the resampler and the gated cross-attention stay trainable."""
        self.vision.requires_grad_(not vision)
        self.language.requires_grad_(not language)


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Build models in this context without memory for their weights."""
    with torch.device("meta"):
        yield
