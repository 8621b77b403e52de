"""Checkpoints with random weights, from which ``flamingo-rt train flamingo --start-from`` begins: any sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from flamingo_rt.checkpoints import save_checkpoint
from flamingo_rt.config import CrossAttentionConfig, FlamingoConfig, LanguageConfig, ResamplerConfig, ViTConfig
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.presets import preset
from flamingo_rt.training.data.scene_documents import texts_of_scene
from flamingo_rt.training.tokenizer_training import train_tokenizer
from flamingo_rt.weights.lazy import LazyTensor

TOKENIZER_SCENES = 1000


def sized(
    name: str, width: int, layers: int, vision: ViTConfig, latents: int = 24, resampler_layers: int = 2
) -> FlamingoConfig:
    """A model of one ``width`` from the resampler on, with gated cross-attention before every language layer."""
    head_width = 64 if width % 64 == 0 and width >= 256 else 32
    heads = width // head_width
    tiny = preset("tiny")
    return FlamingoConfig(
        name=name, vision=vision,
        resampler=ResamplerConfig(
            width=width, layers=resampler_layers, heads=heads, head_width=head_width, latents=latents, max_frames=8,
            input_norms=True, final_norm=True,
        ),
        cross_attention=CrossAttentionConfig(interval=1, heads=heads, head_width=head_width),
        language=LanguageConfig(
            vocab_size=512, width=width, layers=layers, heads=heads, kv_heads=heads, head_width=head_width,
            ff_width=8 * width // 3 // 32 * 32, context=512, activation="swiglu",
        ),
        preprocessing=replace(tiny.preprocessing), prompts=tiny.prompts, max_visuals=tiny.max_visuals,
    )


def scene_tokenizer(config: FlamingoConfig, seed: int = 0, count: int = TOKENIZER_SCENES) -> Tokenizer:
    """A tokenizer learnt from the texts about drawn scenes."""
    texts: Iterable[str] = (
        text for index in range(count) for text in texts_of_scene(seed, index, config.prompts)
    )
    return train_tokenizer(texts, config.language.vocab_size, config.tokens)


def write_random_checkpoint(
    folder: Path, config: FlamingoConfig, tokenizer_json: str, seed: int = 0,
    given: Mapping[str, LazyTensor] | None = None,
) -> Path:
    """Write a model of random weights; tensors ``given`` by their names in `Flamingo` replace them."""
    torch.manual_seed(seed)
    model = Flamingo(config)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if given is not None and name in given:
                tensor.copy_(given[name].to(torch.float32).read())
    save_checkpoint(folder, model, tokenizer_json)
    return folder
