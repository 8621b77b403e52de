"""Slices of large models: the widths, heads and kinds of layers of a preset, one layer of each kind."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from flamingo_rt.bundle import Bundle
from flamingo_rt.checkpoints import StoredModel
from flamingo_rt.config import FlamingoConfig, ViTConfig
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.export.quantization.quantization_options import Quantize
from flamingo_rt.export.random_model import random_model
from flamingo_rt.presets import preset
from flamingo_rt.weights.lazy import LazyTensor

# Type computed in, and quantization of the weights, by the name of the form.
FORMS = {"fp16": ("fp16", None), "bf16": ("bf16", None), "int8": ("fp16", "int8"), "int4": ("fp16", "int4")}


def slice_of(name: str) -> FlamingoConfig:
    """A preset with one layer of everything, and fewer words."""
    config = preset(name)
    vision = config.vision
    vision = replace(vision, layers=1) if isinstance(vision, ViTConfig) else replace(vision, depths=(1, 1, 1, 1))
    return replace(
        config, vision=vision, resampler=replace(config.resampler, layers=1),
        language=replace(config.language, layers=1, vocab_size=1024),
    )


def export_slice(name: str, form: str, out: Path, **language: object) -> Bundle:
    """The slice of a preset as a bundle for TensorRT, its weights in one of `FORMS`; with ``language``, fields of its
    language model are others."""
    compute, scheme = FORMS[form]
    config = slice_of(name)
    config = replace(config, language=replace(config.language, **language))
    return export_model(
        _repeating(config), out, lowering="tensorrt", compute=compute, compare=False,
        quantize=None if scheme is None else Quantize(scheme, rounding="nearest"),
    )


def _repeating(config: FlamingoConfig) -> StoredModel:
    """A model whose tensors are all made of the same 65,536 random numbers: a hundred million take no time. No two
    tensors are the same, or the compiler would keep one of them."""
    model, numbers = random_model(config), torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)) / 50

    def made(tensor: LazyTensor) -> LazyTensor:
        def read() -> Tensor:
            size, first = math.prod(tensor.shape), zlib.crc32(tensor.name.encode()) % len(numbers)
            return numbers.repeat(math.ceil((first + size) / len(numbers)))[first : first + size].view(tensor.shape)

        return replace(tensor, read=read)

    return replace(model, tensors={name: made(tensor) for name, tensor in model.tensors.items()})
