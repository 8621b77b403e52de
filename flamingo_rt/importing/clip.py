"""CLIP's vision transformer, under the tensor names of open_clip (and OpenAI) or of the transformers library."""

from __future__ import annotations

import math
import re

from flamingo_rt.config import PreprocessingConfig, ViTActivation, ViTConfig
from flamingo_rt.errors import DataError
from flamingo_rt.importing.clip_config import Found, Stated, stated_beside
from flamingo_rt.importing.sources import Source, TensorSlice

# Width of a head: 64, but for the largest models of open_clip, by their width (its model_configs: H, g, bigG, e).
HEAD_WIDTH = 64
LARGE_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}

_OPEN_CLIP = {
    "class_token": "class_embedding", "positions": "positional_embedding", "patches.weight": "conv1.weight",
    "input_norm": "ln_pre", "output_norm": "ln_post", "blocks": "transformer.resblocks",
    "attention_norm": "ln_1", "ff_norm": "ln_2", "output": "attn.out_proj", "ff.up": "mlp.c_fc",
    "ff.down": "mlp.c_proj",
}
_TRANSFORMERS = {
    "class_token": "embeddings.class_embedding", "positions": "embeddings.position_embedding.weight",
    "patches.weight": "embeddings.patch_embedding.weight", "input_norm": "pre_layrnorm",
    "output_norm": "post_layernorm", "blocks": "encoder.layers", "attention_norm": "layer_norm1",
    "ff_norm": "layer_norm2", "output": "self_attn.out_proj", "ff.up": "mlp.fc1", "ff.down": "mlp.fc2",
}
# The final norm and the projection act on the unused class token; the others are not weights.
_NO_WEIGHTS = re.compile(r"(^|\.)(proj|ln_post\.\w+|post_layernorm\.\w+|position_ids|attn_mask)$")
_NAMINGS = (("visual.", _OPEN_CLIP), ("", _OPEN_CLIP), ("vision_model.", _TRANSFORMERS), ("", _TRANSFORMERS))


def _naming(source: Source) -> tuple[str, dict[str, str]]:
    for prefix, names in _NAMINGS:
        if prefix + names["class_token"] in source:
            return prefix, names
    seen = ", ".join(list(source.tensors)[:3])
    raise DataError(
        f"{source.path} holds no CLIP vision transformer: neither visual.class_embedding (open_clip, OpenAI) nor "
        f"vision_model.embeddings.class_embedding (transformers) is in it; it begins with {seen}"
    )


def vision_config(source: Source, activation: ViTActivation | None = None, post_norm: bool = False) -> ViTConfig:
    """The encoder's sizes, from its tensors and the configuration beside them.

    ``activation`` overrides what the configuration says; without either it is ``quick_gelu``, OpenAI's, which every
    released OpenFlamingo model has. ``post_norm`` is `ViTConfig.post_norm`. Raises `DataError`.
    """
    found, stated = _sizes(source), _stated(source)
    head_width = stated.head_width or LARGE_HEAD_WIDTHS.get(found.width, HEAD_WIDTH)
    heads = stated.heads or (found.width // head_width if found.width % head_width == 0 else 0)
    if not heads or found.width % heads:
        parts = f"{heads} heads" if stated.heads else f"heads of {head_width}"
        raise DataError(f"{source.path}: a width of {found.width} cannot be split into {parts}")
    return ViTConfig(
        image_size=found.image_size, patch_size=found.patch_size, width=found.width, layers=found.layers, heads=heads,
        ff_width=found.ff_width, activation=activation or stated.activation or "quick_gelu", norm_eps=stated.norm_eps,
        post_norm=post_norm,
    )


def vision_preprocessing(source: Source) -> PreprocessingConfig:
    """The preprocessing stated beside the weights, else CLIP's own. Raises `DataError` for unsupported settings."""
    return _stated(source).preprocessing


def _stated(source: Source) -> Stated:
    return stated_beside(source.path, _naming(source)[1] is _TRANSFORMERS, _sizes(source))


def _sizes(source: Source) -> Found:
    prefix, names = _naming(source)
    shape = source.shape(prefix + names["patches.weight"])
    places = source.shape(prefix + names["positions"])
    side = math.isqrt(places[0] - 1)
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or side < 1 or side * side != places[0] - 1:
        raise DataError(
            f"{source.path}: patches {list(shape)} and positions {list(places)} are not those of a square picture "
            "with a class token: another architecture?"
        )
    blocks = prefix + names["blocks"]
    return Found(
        image_size=side * shape[2], patch_size=shape[2], width=shape[0], layers=source.layers(blocks),
        ff_width=source.rows(f"{blocks}.0.{names['ff.up']}.weight"),
    )


def vision_tensors(source: Source, config: ViTConfig) -> dict[str, TensorSlice]:
    """The source of each tensor of ``vision.*``. Raises `DataError` when the encoder has one that ours lacks."""
    prefix, names = _naming(source)
    slices = {
        "class_token": TensorSlice(prefix + names["class_token"]),
        "positions": TensorSlice(prefix + names["positions"]),
        "patches.weight": TensorSlice(prefix + names["patches.weight"]),
    }
    norms = ("input_norm", "output_norm") if config.post_norm else ("input_norm",)
    for norm in norms:
        slices |= {f"{norm}.{part}": TensorSlice(f"{prefix}{names[norm]}.{part}") for part in ("weight", "bias")}
    for layer in range(config.layers):
        block, ours = f"{prefix}{names['blocks']}.{layer}", f"blocks.{layer}"
        for part in ("weight", "bias"):
            for name in ("attention_norm", "ff_norm", "output", "ff.up", "ff.down"):
                slices[f"{ours}.{name}.{part}"] = TensorSlice(f"{block}.{names[name]}.{part}")
            for index, name in enumerate(("query", "key", "value")):
                slices[f"{ours}.{name}.{part}"] = (
                    TensorSlice(f"{block}.attn.in_proj_{part}", index, 3) if names is _OPEN_CLIP
                    else TensorSlice(f"{block}.self_attn.{name[0]}_proj.{part}")
                )
    first = {names[part].split(".")[0] for part in ("patches.weight", "input_norm", "blocks")}
    roots = (prefix,) if prefix else tuple(f"{part}." for part in first)
    source.check_all_taken(roots, {part.name for part in slices.values()}, _NO_WEIGHTS)
    return {f"vision.{name}": part for name, part in slices.items()}
