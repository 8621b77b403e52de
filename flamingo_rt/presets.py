"""Named configurations: the paper's three models, and the small one that ships in this package.

Sizes follow tables 4 and 5 of the Flamingo paper (arXiv 2204.14198). The tables disagree for 9B: table 4 prints 40
language layers and 10 cross-attention layers, which gives 8.9B and 2.0B; the counts of table 5 (7.1B and 1.6B) need 32
and 8. Table 5 is followed.
"""

from __future__ import annotations

from collections.abc import Callable

from flamingo_rt.config import (
    CrossAttentionConfig,
    FlamingoConfig,
    LanguageConfig,
    NFNetConfig,
    PreprocessingConfig,
    ResamplerConfig,
)
from flamingo_rt.errors import UsageError


def _paper(name: str, width: int, heads: int, layers: int, interval: int) -> FlamingoConfig:
    """A model of the paper: NFNet-F6, 6 resampler layers of width 1536, a Chinchilla-like language model."""
    return FlamingoConfig(
        name=name,
        vision=NFNetConfig(),
        resampler=ResamplerConfig(),
        cross_attention=CrossAttentionConfig(interval=interval, heads=heads, head_width=128, media_width=width),
        language=LanguageConfig(
            width=width, layers=layers, heads=heads, kv_heads=heads, head_width=128, ff_width=4 * width,
            positions="relative",
        ),
    )


def _tiny() -> FlamingoConfig:
    """About 2.3M parameters: 64-pixel pictures, sentences about drawn scenes."""
    return FlamingoConfig(
        name="tiny",
        vision=NFNetConfig(
            image_size=64, stem_widths=(16, 32, 48), stem_strides=(2, 1, 1), widths=(64, 96, 128), depths=(1, 2, 2),
            strides=(2, 2, 1), group_width=16, squeeze_excite=0.5, output_width=160,
        ),
        resampler=ResamplerConfig(
            width=128, layers=2, heads=4, head_width=32, latents=24, max_frames=8, input_norms=True, final_norm=True,
            spatial_positions=True,
        ),
        cross_attention=CrossAttentionConfig(interval=1, heads=4, head_width=32, norm="rmsnorm", norm_bias=False),
        language=LanguageConfig(
            vocab_size=512, width=128, layers=4, heads=4, kv_heads=2, head_width=32, ff_width=384, context=1024,
            activation="swiglu",
        ),
        preprocessing=PreprocessingConfig(),
        max_visuals=40,
    )


PRESETS: dict[str, Callable[[], FlamingoConfig]] = {
    "tiny": _tiny,
    "flamingo-3b": lambda: _paper("flamingo-3b", width=2048, heads=16, layers=24, interval=1),
    "flamingo-9b": lambda: _paper("flamingo-9b", width=4096, heads=32, layers=32, interval=4),
    "flamingo-80b": lambda: _paper("flamingo-80b", width=8192, heads=64, layers=80, interval=7),
}

# Billions of parameters in table 5.
PAPER_PARAMETERS: dict[str, dict[str, float]] = {
    "flamingo-3b": {"vision": 0.435, "resampler": 0.194, "cross_attention": 1.2, "language": 1.4, "total": 3.2},
    "flamingo-9b": {"vision": 0.435, "resampler": 0.194, "cross_attention": 1.6, "language": 7.1, "total": 9.3},
    "flamingo-80b": {"vision": 0.435, "resampler": 0.194, "cross_attention": 10.0, "language": 70.0, "total": 80.0},
}


def preset(name: str) -> FlamingoConfig:
    """The configuration called ``name``. Raises `UsageError` that lists the known names."""
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]()
