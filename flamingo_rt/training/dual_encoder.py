"""The model of contrastive pretraining: an image encoder and a text encoder, compared in one space (§B.1.3), and beside
them, where wanted, a captioner."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flamingo_rt.config import NFNetConfig, ViTConfig, parse_config, require_sizes
from flamingo_rt.model.captioner import Captioner
from flamingo_rt.model.flamingo import make_vision_encoder
from flamingo_rt.model.text_encoder import TextEncoder, TextEncoderConfig


@dataclass(frozen=True)
class DualEncoderConfig:
    """Sizes of both encoders. ``embedding``: the width in which pictures and texts are compared (the paper: 1376).
    ``captioner_layers``: those of the captioner, 0 for none."""

    vision: NFNetConfig | ViTConfig = field(default_factory=NFNetConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    embedding: int = 1376
    captioner_layers: int = 0

    def __post_init__(self) -> None:
        require_sizes(self, may_be_zero=("captioner_layers",))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, that of a model without a captioner as it was before there were any."""
        sizes = asdict(self)
        return sizes if self.captioner_layers else {key: sizes[key] for key in sizes if key != "captioner_layers"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DualEncoderConfig:
        """The inverse of `to_dict`; other keys are ignored, so that a tower's config.json can be given. Raises
        `DataError` that names the key for anything missing, unknown or mistyped."""
        own = {key: data[key] for key in ("vision", "text", "embedding", "captioner_layers") if key in data}
        return parse_config(cls, {"captioner_layers": 0, **own}, "config")  # older towers do not say


class Embeddings(NamedTuple):
    """Unit vectors float32 [N, E] of pictures and of texts, None for what was not given; the pictures' mean features
    [N, Dv], before the projection; the inverse temperature, float32 [1]; and the captioner's losses float32 [N], where
    there is a captioner and each text has its picture."""

    images: Tensor | None
    texts: Tensor | None
    features: Tensor | None
    inverse_temperature: Tensor
    captioning: Tensor | None = None


class DualEncoder(nn.Module):
    """Both encoders, their projections and the temperature, with random weights.

    The inverse temperature is stored as its logarithm, so that it stays above 0. It needs no upper bound: with label
    smoothing the loss rises again where it is large.
    """

    def __init__(self, config: DualEncoderConfig, initial_temperature: float = 0.07) -> None:
        super().__init__()
        self.config = config
        self.vision = make_vision_encoder(config.vision)
        self.text = TextEncoder(config.text)
        self.image_projection = nn.Linear(config.vision.width, config.embedding)
        self.text_projection = nn.Linear(config.text.width, config.embedding)
        self.captioner = (Captioner(config.text, config.vision.width, config.captioner_layers)
                          if config.captioner_layers else None)
        # [1] and not a scalar, which FSDP cannot divide among ranks.
        self.log_inverse_temperature = nn.Parameter(torch.full((1,), -math.log(initial_temperature)))

    def forward(
        self, pixel_values: Tensor | None = None, text_ids: Tensor | None = None, mask: Tensor | None = None
    ) -> Embeddings:
        """Encode pictures, texts, or both: pixel_values [N, 3, H, W]; text_ids int64 [M, T] with mask bool [M, T],
        false for padding. Everything goes through this method, as FSDP wants it."""
        images = texts = features = captioning = None
        if pixel_values is not None:
            cells = self.vision(pixel_values)
            features = cells.float().mean(dim=1)
            images = F.normalize(self.image_projection(features).float(), dim=-1)
        if text_ids is not None and mask is not None:
            texts = F.normalize(self.text_projection(self.text(text_ids, mask)).float(), dim=-1)
            if self.captioner is not None and pixel_values is not None:
                captioning = self.captioner.losses(cells, text_ids, mask)
        return Embeddings(images, texts, features, self.log_inverse_temperature.exp(), captioning)
