"""Memory of activations: bytes that a run of each graph takes beside its weights, inputs and outputs, in float32.

ONNX Runtime computes in an arena that grows to the most that was alive at once, with gaps, and is kept. The counts
below are of the vectors that are alive in the largest layer; the factors were fitted to measured arenas
(`benchmarks/planned_memory.py`), within a fifth of most.
"""

from __future__ import annotations

from flamingo_rt.config import FlamingoConfig, NFNetConfig, ViTConfig
from flamingo_rt.contract import cached_head_width

FLOAT = 4  # bytes
GAPS = 1.15  # share of the arena of a prefill that its counted vectors are of it, inverted
MAPS = 4  # of an NFNet's largest layer: shortcut, input, output and the scaled output
UNKNOWN_ENCODER = 24  # times a picture, of an encoder whose layers are not known


def vision_bytes(config: FlamingoConfig, pictures: int, integers: bool = False) -> int:
    """Bytes of the vision encoder's activations for ``pictures`` pictures and frames in one run. ``integers``: its
    matrices are multiplied in 8 bits, so activations are rounded first."""
    vision = config.vision
    if isinstance(vision, ViTConfig):
        tokens = vision.feature_count + (not vision.keep_class_token)
        numbers = tokens * ((13 if integers else 9) * vision.width + 3 * vision.ff_width)
    elif isinstance(vision, NFNetConfig):
        numbers = MAPS * largest_map(vision)
    else:
        numbers = UNKNOWN_ENCODER * 3 * vision.image_size**2
    return FLOAT * pictures * numbers


def largest_map(vision: NFNetConfig) -> int:
    """Numbers in the largest feature map of an NFNet."""
    side, maps = vision.image_size, []
    for width, stride in zip(vision.stem_widths, vision.stem_strides, strict=True):
        side = -(-side // stride)
        maps.append(width * side**2)
    for width, stride in zip(vision.widths, vision.strides, strict=True):
        maps.append(int(width * vision.bottleneck) * side**2)  # before its stride
        side = -(-side // stride)
        maps.append(width * side**2)
    return max(maps)


def resampler_bytes(config: FlamingoConfig, visuals: int, frames: int = 1, integers: bool = False) -> int:
    """Bytes of the resampler's activations for ``visuals`` visuals of ``frames`` frames in one run, ``integers`` as in
    `vision_bytes`.

    Per feature and latent that is attended to: keys and values (merged, split and transposed), the features, their
    norms and both joined. Per latent: the feed-forward, and the keys and values of all cross-attention layers.
    """
    resampler, cross = config.resampler, config.cross_attention
    sources = frames * config.vision.feature_count + resampler.latents
    attended = 5 * resampler.heads * resampler.head_width + (5.5 if integers else 3) * resampler.width
    inner = 0.5 * resampler.ff_multiplier * resampler.width
    media = 5 * cross.heads * cross.head_width * len(config.cross_layers)
    return round(FLOAT * visuals * (sources * attended + resampler.latents * (inner + media)))


def prefill_bytes(
    config: FlamingoConfig, rows: int, tokens: int, total: int, visuals: int = 0, integers: bool = False
) -> int:
    """Bytes of the language model's activations for ``tokens`` new tokens a row (``total`` with those before them),
    where a row has ``visuals`` visuals. ``integers``: its matrices are in blocks of 8 or 4 bits, for which activations
    are rounded to 8.

    Per token: the residual stream, its norm and a layer's result (3 * width), and either the attention's queries, keys
    and values (merged, split and transposed: 3 times; normalised: 3 times more for queries and keys; with relative
    positions: queries once more) or a feed-forward's inner vectors (before and after the activation: 2; gated and
    split: 7). Per token and latent: the scores of cross-attention, a number a head, and three of its mask. Per pair of
    tokens: attention scores are computed in pieces, but position biases are whole. ALiBi: a number a head. Relative
    positions: products, scaled, indices (int64) and gathered, 20 bytes a head, and the distances three times as int64.
    """
    language, cross = config.language, config.cross_attention
    heads = language.heads + 2 * language.kv_heads
    normed = language.heads + language.kv_heads if language.query_key_norm else 0
    twice = language.heads if language.positions == "relative" else 0
    attention = (3 * (heads + normed) + twice) * cached_head_width(language)
    feed_forward = (7 if language.activation == "swiglu" else 2) * language.ff_width
    gated = 2 * max(cross.ff_multiplier * language.width, cross.heads * cross.head_width)
    vectors = GAPS * FLOAT * (3 * language.width + max(attention, feed_forward, gated))
    rounded = 1.4 * language.ff_width if integers else 0
    seen = FLOAT * (cross.heads + 3) * visuals * config.resampler.latents
    pairs = {"alibi": FLOAT * language.heads, "relative": 20 * language.heads + 24}.get(language.positions, 0)
    return round(rows * tokens * (vectors + rounded + seen + total * pairs))
