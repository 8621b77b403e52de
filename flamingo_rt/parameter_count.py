"""Parameter counts, computed from a configuration alone: before anything is allocated, and without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flamingo_rt.config import (
        CrossAttentionConfig,
        FlamingoConfig,
        LanguageConfig,
        NFNetConfig,
        VisionConfig,
        ViTConfig,
    )


def reckon_parameters(config: FlamingoConfig) -> Mapping[str, int]:
    """Parameter counts by part, and ``total``; a tied head counts once."""
    counts = {
        "vision": vision_parameters(config.vision),
        "resampler": _resampler(config),
        "cross_attention": _cross_attention(config),
        "language": language_parameters(config.language),
    }
    return {**counts, "total": sum(counts.values())}


def vision_parameters(config: VisionConfig) -> int:
    """Parameters of a vision encoder."""
    if config.kind == "external":
        return config.parameters
    return _nfnet(config) if config.kind == "nfnet" else _vit(config)


def _linear(inputs: int, outputs: int, bias: bool = False) -> int:
    return inputs * outputs + outputs * bias


def _norm(width: int, kind: str = "layernorm", bias: bool = True) -> int:
    return width if kind == "rmsnorm" else width * (1 + bias)


def _feed_forward(width: int, hidden: int, activation: str, bias: bool) -> int:
    ups = 2 if activation == "swiglu" else 1
    return ups * _linear(width, hidden, bias) + _linear(hidden, width, bias)


def _convolution(inputs: int, outputs: int, kernel: int, groups: int = 1) -> int:
    """A standardised convolution, with its bias and gain."""
    return (inputs // groups) * outputs * kernel * kernel + 2 * outputs


def _nfnet(config: NFNetConfig) -> int:
    total = sum(_convolution(inputs, outputs, 3)
                for inputs, outputs in zip((3, *config.stem_widths), config.stem_widths, strict=False))
    before = config.stem_widths[-1]
    for width, depth in zip(config.widths, config.depths, strict=True):
        inner, hidden = int(width * config.bottleneck), int(width * config.squeeze_excite)
        groups = inner // config.group_width
        same = 2 * _convolution(inner, inner, 3, groups) + _convolution(inner, width, 1)
        same += _linear(width, hidden, True) + _linear(hidden, width, True) + 1
        total += depth * same + _convolution(before, width, 1)
        total += _convolution(before, inner, 1) + (depth - 1) * _convolution(width, inner, 1)
        before = width
    return total + _convolution(before, config.output_width, 1)


def _vit(config: ViTConfig) -> int:
    width, patches = config.width, (config.image_size // config.patch_size) ** 2
    block = 2 * _norm(width) + 4 * _linear(width, width, True)
    block += _feed_forward(width, config.ff_width, config.activation, True)
    ends = _norm(width) * (1 + config.post_norm)
    return 3 * width * config.patch_size**2 + width + (patches + 1) * width + config.layers * block + ends


def _resampler(model: FlamingoConfig) -> int:
    config = model.resampler
    width, inner = config.width, config.heads * config.head_width
    layer = 4 * _linear(width, inner) + (3 if config.input_norms else 1) * _norm(width)
    layer += _feed_forward(width, width * config.ff_multiplier, config.activation, False)
    total = config.layers * layer + (config.latents + config.max_frames) * width
    if config.input_projection:
        total += _linear(model.vision.width, width)
    if config.spatial_positions:
        total += model.vision.feature_count * width
    return total + (_norm(width) if config.final_norm else 0)


def _cross_attention(model: FlamingoConfig) -> int:
    config: CrossAttentionConfig = model.cross_attention
    width, inner = model.language.width, config.heads * config.head_width
    media = config.media_width or model.resampler.width
    layer = 2 * _linear(width, inner) + 2 * _linear(media, inner) + 2 + 2 * _norm(width, config.norm, config.norm_bias)
    layer += _feed_forward(width, width * config.ff_multiplier, config.activation, False)
    projection = _linear(model.resampler.width, config.media_width) if config.media_width else 0
    return len(model.cross_layers) * layer + projection


def language_parameters(config: LanguageConfig) -> int:
    """Parameters of a language model without cross-attention; a tied head counts once."""
    width, inner, inner_kv = config.width, config.heads * config.head_width, config.kv_heads * config.head_width
    layer = _linear(width, inner, config.attention_bias) + 2 * _linear(width, inner_kv, config.attention_bias)
    layer += _linear(inner, width, config.attention_output_bias)
    layer += 2 * _norm(width, config.norm, config.norm_bias)
    layer += _feed_forward(width, config.ff_width, config.activation, config.ff_bias)
    if config.query_key_norm:
        layer += _norm(inner, config.norm, config.norm_bias) + _norm(inner_kv, config.norm, config.norm_bias)
    if config.positions == "relative":
        layer += _linear(width, inner) + 2 * inner
    total = config.vocab_size * width + config.layers * layer + _norm(width, config.norm, config.norm_bias)
    if config.positions == "learnt":
        total += (config.context + config.position_offset) * width
    return total + (0 if config.tied_head else _linear(width, config.vocab_size, config.head_bias))
