"""Tiny configurations and random weights for the tests of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from flamingo_rt.config import (
    CrossAttentionConfig,
    FlamingoConfig,
    LanguageConfig,
    NFNetConfig,
    ResamplerConfig,
    ViTConfig,
)

_CHINCHILLA = LanguageConfig(
    vocab_size=37, width=16, layers=2, heads=2, kv_heads=2, head_width=8, ff_width=24, context=32, positions="relative"
)

FAMILIES = {
    "chinchilla": _CHINCHILLA,
    "mpt": replace(
        _CHINCHILLA, width=24, heads=6, kv_heads=6, head_width=4, positions="alibi", norm="layernorm",
        query_key_norm=True,
    ),
    "gpt_neox": replace(
        _CHINCHILLA, positions="rotary", rotary_fraction=0.5, norm="layernorm", norm_bias=True, attention_bias=True,
        attention_output_bias=True, ff_bias=True, parallel_residual=True, tied_head=False,
    ),
    "llama": replace(
        _CHINCHILLA, heads=4, kv_heads=2, positions="rotary", rotary_base=500.0, activation="swiglu", tied_head=False
    ),
    "opt": replace(
        _CHINCHILLA, positions="learnt", position_offset=2, norm="layernorm", norm_bias=True, activation="relu",
        attention_bias=True, attention_output_bias=True, ff_bias=True,
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request) -> LanguageConfig:
    """One configuration for each family of language models."""
    return FAMILIES[request.param]


@pytest.fixture
def nfnet_config() -> NFNetConfig:
    """Two stages of 3 and 2 blocks; odd sizes appear on the way."""
    return NFNetConfig(
        image_size=19, stem_widths=(4, 8), stem_strides=(2, 1), widths=(8, 16), depths=(3, 2), strides=(1, 2),
        group_width=2, output_width=12,
    )


@pytest.fixture
def vit_config() -> ViTConfig:
    """Four patches and a class token."""
    return ViTConfig(image_size=8, patch_size=4, width=16, layers=2, heads=4, ff_width=24)


@pytest.fixture
def flamingo_config(vit_config) -> FlamingoConfig:
    """A whole model: three language layers, cross-attention before each."""
    return FlamingoConfig(
        vision=vit_config,
        resampler=ResamplerConfig(width=16, layers=1, heads=2, head_width=8, latents=3, max_frames=4),
        cross_attention=CrossAttentionConfig(
            heads=2, head_width=6, media_width=20, norm="rmsnorm", norm_bias=False
        ),
        language=replace(_CHINCHILLA, layers=3, tied_head=False),
    )


def _randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter, gates and gains too, so that no path is silent; returns the module in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.5 * fan_in**-0.5)
            if parameter.dim() < 2:
                parameter += 0.7
    return module.eval()


@pytest.fixture
def randomise() -> Callable[..., nn.Module]:
    """Fills a module with random weights."""
    return _randomise


@pytest.fixture
def random_tensor() -> Callable[..., torch.Tensor]:
    """Standard normal float32 tensors, the same for the same seed and shape."""
    return lambda *shape, seed=1: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def arrays() -> Callable[[nn.Module], dict[str, np.ndarray]]:
    """A module's weights as float64 numpy arrays, for references that share no code with the model."""
    return lambda module: {name: t.detach().double().numpy() for name, t in module.state_dict().items()}
