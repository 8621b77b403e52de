"""Minimum work of each stage of a model, (FLOPs, bytes), for `flamingo_rt.bench.results.Against`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flamingo_rt.bench import ceilings
from flamingo_rt.bundle import WeightBytes
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import LANGUAGE_MODEL, RESAMPLER, VISION_ENCODER

Work = tuple[int, int]


@dataclass(frozen=True)
class Theory:
    """The least work of a model with these weights; ``number`` is the bytes of one number of features, media and cache,
    in the type that the graphs compute in."""

    config: FlamingoConfig
    weights: Mapping[str, WeightBytes]
    number: int = ceilings.FLOAT

    def vision(self) -> Work:
        """Work of the vision encoder for one picture."""
        moved = ceilings.pixel_bytes(self.config) + ceilings.feature_bytes(self.config, self.number)
        return ceilings.vision_flops(self.config), self.weights[VISION_ENCODER].read(1) + moved

    def resampler(self) -> Work:
        """Work of the resampler for one picture."""
        moved = ceilings.feature_bytes(self.config, self.number) + ceilings.media_bytes(self.config, self.number)
        return ceilings.resampler_flops(self.config), self.weights[RESAMPLER].read(1) + moved

    def prefill(self, tokens: int) -> Work:
        """Work of a prefill of ``tokens`` tokens with one picture, into an empty cache."""
        moved = ceilings.cache_bytes(self.config, tokens, self.number) + ceilings.media_bytes(self.config, self.number)
        return ceilings.language_flops(self.config, tokens), self.weights[LANGUAGE_MODEL].read(tokens, tokens) + moved

    def decode(self, batch: int, context: int, steps: int) -> Work:
        """Average work of ``steps`` steps of ``batch`` rows: the weights once for all rows, each row's cache and its
        last picture. Step i of them, from 0, sees context + i + 1 tokens."""
        seen = context + (steps + 1) / 2
        row = ceilings.cache_bytes(self.config, 1, self.number) * seen + ceilings.media_bytes(self.config, self.number)
        flops = batch * ceilings.language_flops(self.config, 1, cached=round(seen) - 1)
        return flops, self.weights[LANGUAGE_MODEL].read(batch, seen) + round(batch * row)
