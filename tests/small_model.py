"""A small Flamingo with random weights whose greedy tokens vary, and its checkpoint: shared by tests."""

from __future__ import annotations

from pathlib import Path

import torch

from flamingo_rt.checkpoints import save_checkpoint
from flamingo_rt.config import (
    CrossAttentionConfig,
    FlamingoConfig,
    LanguageConfig,
    NFNetConfig,
    ResamplerConfig,
    TokensConfig,
)
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.training.tokenizer import train_tokenizer

TEXTS = ["Output: a red circle and a blue square", "Question: how many stars are there? Answer: two"] * 3


def small_config() -> FlamingoConfig:
    return FlamingoConfig(
        name="small",
        vision=NFNetConfig(
            image_size=32, stem_widths=(8, 16), stem_strides=(2, 2), widths=(16, 32), depths=(1, 1), strides=(1, 2),
            group_width=8, output_width=24,
        ),
        resampler=ResamplerConfig(width=32, layers=1, heads=2, head_width=16, latents=5, max_frames=4),
        cross_attention=CrossAttentionConfig(interval=2, heads=2, head_width=16),
        language=LanguageConfig(
            vocab_size=300, width=32, layers=3, heads=4, kv_heads=2, head_width=8, ff_width=48, context=96,
            tied_head=False,
        ),
        max_visuals=6,
    )


def small_flamingo(config: FlamingoConfig | None = None, seed: int = 0) -> Flamingo:
    torch.manual_seed(seed)
    model = Flamingo(config or small_config()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gate", "gain")):
                parameter.fill_(0.7)
            elif "embedding" in name:
                parameter.mul_(50.0)
            elif parameter.ndim == 2:
                parameter.mul_(3.0)
    return model


def small_checkpoint(folder: Path) -> Path:
    config = small_config()
    tokenizer = train_tokenizer(TEXTS, config.language.vocab_size, TokensConfig())
    save_checkpoint(folder, small_flamingo(config), tokenizer.to_str())
    return folder
