"""The models that can be compared: OpenFlamingo's presets with an MPT, and a small one to try the comparison with.

The peer's resampler and gated layers have one form (6 layers, 64 latents, 8 heads of 64), so a small model is small in
its vision encoder and its language model alone.
"""

from __future__ import annotations

from dataclasses import replace

from flamingo_rt.config import FlamingoConfig, ViTConfig
from flamingo_rt.errors import UsageError
from flamingo_rt.presets import preset

PRESETS = ("openflamingo-3b", "openflamingo-9b")  # the peer's script builds MPT models
SMALL = "openflamingo-small"
SHAPES = (*PRESETS, SMALL)


def shape_of(name: str) -> FlamingoConfig:
    """The configuration called ``name``, a preset or the small model. Raises `UsageError`."""
    return _small() if name == SMALL else preset(name)


def comparable(name: str) -> FlamingoConfig:
    """`shape_of`, of what the peer can be built as. Raises `UsageError` that lists it."""
    if name not in SHAPES:
        raise UsageError(f"{name!r} cannot be compared; known: {', '.join(SHAPES)}")
    return shape_of(name)


def import_options(name: str) -> list[str]:
    """Options of ``flamingo-rt export`` for the shape: the preset to check the files against, where it is one."""
    return [] if name == SMALL else ["--preset", name]


def _small() -> FlamingoConfig:
    large = preset("openflamingo-3b")
    return replace(
        large, name=SMALL,
        vision=ViTConfig(width=64, layers=2, heads=1, ff_width=256),
        resampler=replace(large.resampler, width=64),
        language=replace(large.language, width=128, layers=2, heads=2, kv_heads=2, head_width=64, ff_width=512),
    )
