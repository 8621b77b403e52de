"""The least a stage must do: products to compute, from the configuration, and bytes to move.

A multiplication and its addition are two FLOPs. Norms, activations and softmax are not counted: they are small beside
the products, and a ceiling may only be too high.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from flamingo_rt.config import CrossAttentionConfig, ExternalVisionConfig, FlamingoConfig, NFNetConfig, ViTConfig
from flamingo_rt.contract import cached_head_width

FLOAT = 4  # bytes of a float32: pixel values, and what graphs compute with unless they do in half precision


@dataclass(frozen=True)
class Product:
    """A matrix (or a convolution's kernel) of ``parameters`` weights, applied at ``positions`` places."""

    parameters: int
    positions: int


def product_flops(products: Iterable[Product]) -> int:
    """FLOPs of matrix products."""
    return sum(2 * product.parameters * product.positions for product in products)


def parameter_bytes(products: Iterable[Product]) -> int:
    """Bytes of the matrices in float32."""
    return sum(FLOAT * product.parameters for product in products)


def vision_flops(config: FlamingoConfig) -> int:
    """FLOPs of the vision encoder for one picture."""
    if isinstance(config.vision, ExternalVisionConfig):
        return 2 * config.vision.multiply_adds
    flops = product_flops(vision_products(config))
    if isinstance(config.vision, ViTConfig):
        tokens = (config.vision.image_size // config.vision.patch_size) ** 2 + 1
        flops += config.vision.layers * 4 * tokens * tokens * config.vision.width  # scores, and the sum over values
    return flops


def vision_products(config: FlamingoConfig) -> list[Product]:
    """The matrices of the vision encoder, for one picture; of an external one, all of its weights as one."""
    vision = config.vision
    if isinstance(vision, ExternalVisionConfig):
        return [Product(vision.parameters, 1)]
    if isinstance(vision, NFNetConfig):
        return _nfnet_products(vision)
    patches, width = (vision.image_size // vision.patch_size) ** 2, vision.width
    layer = Product(4 * width * width + 2 * width * vision.ff_width, patches + 1)
    return [Product(3 * vision.patch_size**2 * width, patches), *[layer] * vision.layers]


def _nfnet_products(vision: NFNetConfig) -> list[Product]:
    found, side, inputs = [], vision.image_size, 3
    for outputs, stride in zip(vision.stem_widths, vision.stem_strides, strict=True):
        side = math.ceil(side / stride)
        found.append(Product(9 * inputs * outputs, side * side))
        inputs = outputs
    for outputs, depth, stride in zip(vision.widths, vision.depths, vision.strides, strict=True):
        inner, excite = int(outputs * vision.bottleneck), int(outputs * vision.squeeze_excite)
        grouped = 9 * inner * vision.group_width
        for block in range(depth):
            before = side * side
            side = math.ceil(side / stride) if block == 0 else side
            after = side * side
            found += [Product(inputs * inner, before), Product(2 * grouped, after), Product(inner * outputs, after)]
            found.append(Product(2 * outputs * excite, 1))
            if block == 0:
                found.append(Product(inputs * outputs, after))
            inputs = outputs
    return [*found, Product(inputs * vision.output_width, side * side)]


def resampler_flops(config: FlamingoConfig) -> int:
    """FLOPs from one picture's features to the keys and values of every cross-attention layer."""
    resampler, sources = config.resampler, config.vision.feature_count + config.resampler.latents
    attention = 4 * resampler.latents * sources * resampler.heads * resampler.head_width
    return product_flops(resampler_products(config)) + resampler.layers * attention


def resampler_products(config: FlamingoConfig) -> list[Product]:
    """The matrices of the resampler's graph, for one picture."""
    resampler, cross, features = config.resampler, config.cross_attention, config.vision.feature_count
    width, inner, latents = resampler.width, resampler.heads * resampler.head_width, resampler.latents
    layer = [
        Product(2 * width * inner, latents),  # query and output
        Product(2 * width * inner, features + latents),  # key and value
        Product(2 * width * resampler.ff_multiplier * width, latents),
    ]
    media_width = cross.media_width or width
    keys_values = Product(2 * media_width * cross.heads * cross.head_width, latents)
    return [
        *([Product(config.vision.width * width, features)] if resampler.input_projection else []),
        *layer * resampler.layers,
        *([Product(width * media_width, latents)] if cross.media_width else []),
        *[keys_values] * len(config.cross_layers),
    ]


def language_flops(config: FlamingoConfig, tokens: int, cached: int = 0) -> int:
    """FLOPs of ``tokens`` new tokens of a row after ``cached`` ones, each seeing one picture, with the last one's
    logits."""
    language, cross = config.language, config.cross_attention
    seen = tokens * cached + tokens * (tokens + 1) // 2  # pairs of a token and one that it may look at
    # Transformer-XL's position score is one more product per pair (its projection of distances is done when exporting).
    per_pair = (6 if language.positions == "relative" else 4) * language.heads * language.head_width
    per_latent = 4 * cross.heads * cross.head_width
    return (
        product_flops(language_products(config, tokens))
        + language.layers * per_pair * seen
        + len(config.cross_layers) * per_latent * tokens * config.resampler.latents
    )


def language_products(config: FlamingoConfig, tokens: int = 1) -> list[Product]:
    """The matrices of the language model's graph, for ``tokens`` tokens and the logits of one."""
    language, cross = config.language, config.cross_attention
    width, inner = language.width, language.heads * language.head_width
    inner_kv = language.kv_heads * language.head_width
    ff_matrices = 3 if language.activation == "swiglu" else 2
    layer = Product(2 * width * inner + 2 * width * inner_kv + ff_matrices * width * language.ff_width, tokens)
    gated = Product(_cross_parameters(cross, width), tokens)
    head = Product(width * language.vocab_size, 1)
    return [*[layer] * language.layers, *[gated] * len(config.cross_layers), head]


def _cross_parameters(cross: CrossAttentionConfig, width: int) -> int:
    """Query, output and feed-forward; keys and values are made in the resampler's graph."""
    return 2 * width * cross.heads * cross.head_width + 2 * width * cross.ff_multiplier * width


def cache_bytes(config: FlamingoConfig, tokens: int, number: int = FLOAT) -> int:
    """Bytes of the self-attention keys and values of ``tokens`` tokens of a row, in numbers of ``number`` bytes."""
    language = config.language
    return tokens * language.layers * 2 * language.kv_heads * cached_head_width(language) * number


def media_bytes(config: FlamingoConfig, number: int = FLOAT) -> int:
    """Bytes of one picture's keys and values, which a token's cross-attention reads, in numbers of ``number`` bytes."""
    cross, resampler = config.cross_attention, config.resampler
    return len(config.cross_layers) * 2 * cross.heads * resampler.latents * cross.head_width * number


def pixel_bytes(config: FlamingoConfig) -> int:
    """Bytes of one picture's ``pixel_values``, float32 whatever the graphs compute in."""
    return 3 * config.vision.image_size**2 * FLOAT


def feature_bytes(config: FlamingoConfig, number: int = FLOAT) -> int:
    """Bytes of one picture's features, in numbers of ``number`` bytes."""
    return config.vision.feature_count * config.vision.width * number
