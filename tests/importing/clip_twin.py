"""A small CLIP encoder with random weights under each of the three namings that people have its files in."""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH, PATCH, GRID, LAYERS, FF_WIDTH = 128, 4, 3, 2, 192
NAMINGS = ("visual.", "open_clip", "vision_model.", "transformers")


def random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.3)


def open_clip_tensors(width: int = WIDTH, places: int = GRID * GRID + 1) -> dict[str, Tensor]:
    """An encoder under open_clip's bare names."""
    rng = torch.Generator().manual_seed(3)
    tensors = {
        "class_embedding": random(rng, width), "positional_embedding": random(rng, places, width),
        "proj": random(rng, width, 16), "conv1.weight": random(rng, width, 3, PATCH, PATCH),
    }
    shapes = {
        "attn.in_proj_": (3 * width, width), "attn.out_proj.": (width, width), "mlp.c_fc.": (FF_WIDTH, width),
        "mlp.c_proj.": (width, FF_WIDTH),
    }
    for layer in range(LAYERS):
        block = f"transformer.resblocks.{layer}"
        for name, (rows, columns) in shapes.items():
            tensors |= {f"{block}.{name}weight": random(rng, rows, columns), f"{block}.{name}bias": random(rng, rows)}
        for name in ("ln_1", "ln_2"):
            tensors |= {f"{block}.{name}.weight": 1 + random(rng, width), f"{block}.{name}.bias": random(rng, width)}
    for name in ("ln_pre", "ln_post"):
        tensors |= {f"{name}.weight": 1 + random(rng, width), f"{name}.bias": random(rng, width)}
    return tensors


def transformers_name(name: str) -> str:
    """Name in the transformers library of a tensor of open_clip's."""
    for theirs, ours in (
        ("class_embedding", "embeddings.class_embedding"), ("conv1", "embeddings.patch_embedding"),
        ("positional_embedding", "embeddings.position_embedding.weight"), ("ln_pre", "pre_layrnorm"),
        ("ln_post", "post_layernorm"), ("transformer.resblocks", "encoder.layers"), ("ln_1", "layer_norm1"),
        ("ln_2", "layer_norm2"), ("attn.out_proj", "self_attn.out_proj"), ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
    ):
        name = name.replace(theirs, ours)
    return name


def named(naming: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors under one of the namings."""
    if naming in ("visual.", "open_clip"):
        return {("visual." if naming == "visual." else "") + name: tensor for name, tensor in tensors.items()}
    renamed = {}
    for name, tensor in tensors.items():
        if "in_proj_" in name:
            block, part = name.split("attn.in_proj_")
            for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{transformers_name(block)}self_attn.{letter}_proj.{part}"] = rows
        else:
            renamed[transformers_name(name)] = tensor
    return {("vision_model." if naming == "vision_model." else "") + name: tensor for name, tensor in renamed.items()}
