"""One tiny model with random weights, behind both engines, and what the tests ask of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import flamingo_rt
from flamingo_rt.checkpoints import open_checkpoint, save_checkpoint
from flamingo_rt.config import CrossAttentionConfig, FlamingoConfig, LanguageConfig, ResamplerConfig, ViTConfig
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.model.naive import generate_naively
from flamingo_rt.model.torch_backend import TorchBackend
from flamingo_rt.presets import preset
from flamingo_rt.processing.preprocess import visual_pixels
from flamingo_rt.processing.prompt import build_prompt
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.processing.visuals import Image, Video
from flamingo_rt.runtime.model import Model
from flamingo_rt.training.tokenizer_training import train_tokenizer

SENTENCES = ["Output: a red circle", "Question: is it a blue square? Answer: yes, it is", "Output: two green circles"]
CONFIG = replace(
    preset("tiny"),
    vision=ViTConfig(image_size=32, patch_size=16, width=16, layers=1, heads=2, ff_width=32),
    resampler=ResamplerConfig(width=32, layers=1, heads=2, head_width=16, latents=4, max_frames=4, final_norm=True),
    cross_attention=CrossAttentionConfig(heads=2, head_width=16, ff_multiplier=2, norm="rmsnorm", norm_bias=False),
    language=LanguageConfig(
        vocab_size=320, width=32, layers=2, heads=4, kv_heads=2, head_width=16, ff_width=64, context=96,
        activation="swiglu", tied_head=False,
    ),
    max_visuals=6,
)


@torch.no_grad()
def fill(model: Flamingo) -> Flamingo:
    """Weights large enough that the next token depends on everything before it; gates open."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            nn.init.constant_(parameter, 0.7)
        elif parameter.ndim > 1:
            scale = 1.0 if "embedding" in name or "latents" in name else 2.0 / math.sqrt(parameter[0].numel())
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


@pytest.fixture(scope="session")
def config() -> FlamingoConfig:
    """The configuration of every model here."""
    return CONFIG


@pytest.fixture(scope="session")
def flamingo() -> Flamingo:
    """The model in PyTorch."""
    torch.manual_seed(0)  # for what `fill` leaves as it was
    return fill(Flamingo(CONFIG))


@pytest.fixture(scope="session")
def checkpoint_folder(flamingo, tmp_path_factory) -> Path:
    """The model as a checkpoint, with a tokenizer trained on three sentences."""
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save_checkpoint(folder, flamingo, train_tokenizer(SENTENCES, 300, CONFIG.tokens).to_str())
    return folder


@pytest.fixture(scope="session")
def bundle_folder(checkpoint_folder, tmp_path_factory) -> Path:
    """The model as a bundle."""
    folder = tmp_path_factory.mktemp("model") / "bundle"
    export_model(open_checkpoint(checkpoint_folder), folder, tolerance=1e-2)  # these weights amplify rounding
    return folder


@pytest.fixture(scope="session")
def tokenizer(checkpoint_folder) -> TextTokenizer:
    """The model's tokenizer: byte-level, so most words are several tokens."""
    return TextTokenizer(checkpoint_folder / "tokenizer.json", CONFIG.tokens, CONFIG.language.vocab_size)


@pytest.fixture(scope="session")
def torch_model(flamingo, tokenizer) -> Model:
    """The model on the torch backend."""
    return Model(TorchBackend(flamingo), CONFIG, tokenizer)


@pytest.fixture(scope="session")
def ort_model(bundle_folder) -> Model:
    """The model on ONNX Runtime, one thread."""
    return flamingo_rt.load(bundle_folder, threads=1)


@pytest.fixture(scope="session", params=["torch", "ort"])
def model(request) -> Model:
    """The model on each backend in turn."""
    return request.getfixturevalue(f"{request.param}_model")


@pytest.fixture(scope="session")
def pictures() -> list[Image]:
    """Six pictures, each of two random colours."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (6, 2, 1, 3), dtype=np.uint8)
    return [Image(np.repeat(np.repeat(pair, 16, axis=0), 32, axis=1)) for pair in colours]


@pytest.fixture(scope="session")
def clip(pictures) -> Video:
    """Three frames, of which the model takes all."""
    return Video([picture.source for picture in pictures[3:]], frames=3)


@pytest.fixture(scope="session")
def naive(flamingo, tokenizer) -> Callable[..., list[int]]:
    """Greedy tokens of a prompt by the model without any cache."""

    def generate(parts, max_new_tokens: int) -> list[int]:
        prompt = build_prompt(parts, tokenizer)
        visuals = [torch.from_numpy(visual_pixels(visual, CONFIG)) for visual in prompt.visuals]
        return generate_naively(
            flamingo, prompt.input_ids.tolist(), prompt.media_index.tolist(), visuals, max_new_tokens,
            tokenizer.stop_ids,
        )

    return generate
