"""A small Flamingo with random weights whose greedy tokens vary, and its checkpoint: shared by tests."""

from __future__ import annotations

import math
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
from flamingo_rt.training.tokenizer_training import train_tokenizer

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


def small_flamingo(config: FlamingoConfig | None = None, seed: int = 49) -> Flamingo:
    """Weights of which every one matters: an answer depends on all tokens and pictures before it. With the seed its
    greedy tokens vary."""
    torch.manual_seed(seed)
    model = Flamingo(config or small_config()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.7)
            elif parameter.ndim < 2 or name.endswith("gain"):  # norms, biases, gains
                parameter.add_(0.2 * torch.randn(parameter.shape) + float(name.endswith("skip_gain")))
            elif any(table in name for table in ("embedding", "latents", "time")):
                parameter.copy_(torch.randn(parameter.shape))
            else:
                parameter.copy_(1.5 * torch.randn(parameter.shape) / math.sqrt(parameter[0].numel()))
    return model


def small_checkpoint(folder: Path) -> Path:
    config = small_config()
    tokenizer = train_tokenizer(TEXTS, config.language.vocab_size, TokensConfig())
    save_checkpoint(folder, small_flamingo(config), tokenizer.to_str())
    return folder
