"""An OpenFlamingo ``checkpoint.pt``: resampler, gated cross-attention, and parts of the language model.

The gated layers have one of two names, depending on how the file was written:
``lang_encoder.gated_cross_attn_layers.N.*`` or ``lang_encoder.<decoder layers>.N.gated_cross_attn_layer.*``. The
language model's own layers, where a file has them, are ``<decoder layers>.N.decoder_layer.*`` or
``old_decoder_blocks.N.*``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from flamingo_rt.config import CrossAttentionConfig, ResamplerConfig
from flamingo_rt.errors import DataError
from flamingo_rt.importing.sources import Source, TensorSlice
from flamingo_rt.weights.lazy import LazyTensor

HEAD_WIDTH = 64  # of resampler and gated layers; OpenFlamingo has no option for it
WHAT = "an OpenFlamingo checkpoint"
_GATED = "gated_cross_attn_layers"
_GATES = {"attention_gate": "attn_gate", "ff_gate": "ff_gate"}
TRAINED_ROOTS = ("perceiver.", f"{_GATED}.")
_WRAPPERS = re.compile(r"(^|\.)(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)(?=\.)")


def trained_part(path: Path, tensors: Mapping[str, LazyTensor], layers: str) -> Source:
    """The checkpoint's tensors under uniform names.

    They are ``perceiver.*``, ``gated_cross_attn_layers.N.*``, and the language model's own names; ``layers`` is the
    path of its decoder layers. Raises `DataError` when this is not a checkpoint for such a language model.
    """
    renamed: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        name = _WRAPPERS.sub("", name).removeprefix(".").removeprefix("lang_encoder.")
        for pattern, replacement in (
            (rf"^{re.escape(layers)}\.(\d+)\.gated_cross_attn_layer\.", rf"{_GATED}.\1."),
            (rf"^{re.escape(layers)}\.(\d+)\.decoder_layer\.", rf"{layers}.\1."),
            (r"^old_decoder_blocks\.(\d+)\.", rf"{layers}.\1."),
        ):
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    source = Source(WHAT, path, renamed)
    if "perceiver.latents" in source and not _gated_layers(source):
        raise DataError(
            f"{path} has no gated cross-attention under {layers}, where this language model has its layers: it was "
            "trained with another one"
        )
    if "perceiver.latents" not in source:
        seen = ", ".join(list(tensors)[:3])
        raise DataError(
            f"{path} is not an OpenFlamingo checkpoint for a language model with {layers}: it needs perceiver.latents "
            f"and gated cross-attention layers, and begins with {seen}"
        )
    return source


def _gated_layers(source: Source) -> list[int]:
    matches = (re.match(rf"{_GATED}\.(\d{{1,4}})\.", name) for name in source.tensors)
    return sorted({int(match[1]) for match in matches if match})


def resampler_config(source: Source) -> ResamplerConfig:
    """The resampler's sizes. Raises `DataError`."""
    if "perceiver.media_time_embs" in source:
        raise DataError(f"{source.path}: perceiver.media_time_embs, an embedding for each picture's place, is unknown")
    latents = source.shape("perceiver.latents")
    frames = source.rows("perceiver.frame_embs") if "perceiver.frame_embs" in source else 0
    return ResamplerConfig(
        width=latents[-1], layers=source.layers("perceiver.layers"),
        heads=_heads(source, "perceiver.layers.0.0.to_q.weight"), head_width=HEAD_WIDTH, latents=latents[0],
        ff_multiplier=source.rows("perceiver.layers.0.1.1.weight") // latents[-1], max_frames=frames,
        activation="gelu", input_projection=False, input_norms=True, final_norm=True,
    )


def resampler_tensors(config: ResamplerConfig) -> dict[str, TensorSlice]:
    """The source of each tensor of ``resampler.*``."""
    slices = {"latents": TensorSlice("perceiver.latents")} | _norm("final_norm", "perceiver.norm")
    if config.max_frames:
        slices["time"] = TensorSlice("perceiver.frame_embs")
    for layer in range(config.layers):
        ours, theirs = f"layers.{layer}", f"perceiver.layers.{layer}"
        slices |= _norm(f"{ours}.feature_norm", f"{theirs}.0.norm_media")
        slices |= _norm(f"{ours}.latent_norm", f"{theirs}.0.norm_latents")
        slices |= _attention(ours, f"{theirs}.0") | _feed_forward(ours, f"{theirs}.1")
    return {f"resampler.{name}": part for name, part in slices.items()}


def cross_attention_config(source: Source, language_layers: int) -> CrossAttentionConfig:
    """Sizes and interval of the gated layers. Raises `DataError` when the interval is not regular."""
    there = _gated_layers(source)
    up = source.shape(f"{_GATED}.{there[0]}.ff.1.weight")
    config = CrossAttentionConfig(
        interval=there[0] + 1, offset="last", heads=_heads(source, f"{_GATED}.{there[0]}.attn.to_q.weight"),
        head_width=HEAD_WIDTH, ff_multiplier=up[0] // up[-1],
        activation="gelu", norm="layernorm", norm_bias=True, attend="last", media_width=None,
    )
    if there != list(config.layers(language_layers)):
        raise DataError(
            f"{source.path}: gated cross-attention stands before layers {', '.join(map(str, there))}; that is not "
            f"a regular interval for a language model of {language_layers} layers: a layer is missing, or the "
            "checkpoint belongs to another language model"
        )
    return config


def cross_attention_tensors(layers: tuple[int, ...]) -> dict[str, TensorSlice]:
    """The source of each tensor of ``cross_attention.*``."""
    slices: dict[str, TensorSlice] = {}
    for layer in layers:
        ours, theirs = f"cross_attention.layers.{layer}", f"{_GATED}.{layer}"
        slices |= _norm(f"{ours}.attention_norm", f"{theirs}.attn.norm") | _attention(ours, f"{theirs}.attn")
        slices |= {f"{ours}.{gate}": TensorSlice(f"{theirs}.{named}") for gate, named in _GATES.items()}
        slices |= _feed_forward(ours, f"{theirs}.ff")
    return slices


def _norm(ours: str, theirs: str) -> dict[str, TensorSlice]:
    return {f"{ours}.{part}": TensorSlice(f"{theirs}.{part}") for part in ("weight", "bias")}


def _attention(ours: str, theirs: str) -> dict[str, TensorSlice]:
    return {
        f"{ours}.query.weight": TensorSlice(f"{theirs}.to_q.weight"),
        f"{ours}.key.weight": TensorSlice(f"{theirs}.to_kv.weight", 0, 2),
        f"{ours}.value.weight": TensorSlice(f"{theirs}.to_kv.weight", 1, 2),
        f"{ours}.output.weight": TensorSlice(f"{theirs}.to_out.weight"),
    }


def _feed_forward(ours: str, theirs: str) -> dict[str, TensorSlice]:
    """A Sequential of norm, linear, GELU, linear."""
    slices = _norm(f"{ours}.ff_norm", f"{theirs}.0")
    return slices | {
        f"{ours}.ff.up.weight": TensorSlice(f"{theirs}.1.weight"),
        f"{ours}.ff.down.weight": TensorSlice(f"{theirs}.3.weight"),
    }


def _heads(source: Source, name: str) -> int:
    rows = source.rows(name)
    if rows % HEAD_WIDTH:
        raise DataError(
            f"{source.path}: tensor {name} has {rows} rows, not a multiple of {HEAD_WIDTH} (a head's width)"
        )
    return rows // HEAD_WIDTH
