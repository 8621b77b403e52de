"""Models of a preset's shape with random weights: as fast as a trained model, and made without downloads."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from flamingo_rt.checkpoints import StoredModel, expected_shapes
from flamingo_rt.config import FlamingoConfig, TokensConfig
from flamingo_rt.errors import UsageError
from flamingo_rt.presets import require_own_encoder
from flamingo_rt.weights.lazy import LazyTensor

GATE = 0.5  # of the cross-attention: open, so that its output reaches the logits


def random_model(config: FlamingoConfig, seed: int = 0) -> StoredModel:
    """Make a model whose tensors are drawn when they are read, each seeded by its name and ``seed``: reproducible, and
    never all in memory. Matrices have the deviation of a fan-in initialisation, norms are near 1, gates are open.

    Raises `UsageError` for a vocabulary too small for a byte-level tokenizer, and for an external encoder.
    """
    require_own_encoder(config)
    tensors = {
        name: LazyTensor(shape, torch.float32, Path("random"), _drawing(name, shape, seed), name)
        for name, shape in expected_shapes(config).items()
    }
    return StoredModel(config, byte_tokenizer(config.language.vocab_size, config.tokens).to_str(), tensors)


def byte_tokenizer(vocab_size: int, tokens: TokensConfig) -> Tokenizer:
    """Make a byte-level tokenizer of ``vocab_size`` entries; those beyond the bytes and special tokens are unused.

    Raises `UsageError` when the bytes and the special tokens do not fit.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [text for text in (tokens.pad, tokens.bos, tokens.eos, tokens.image, tokens.end_of_chunk) if text]
    room = vocab_size - len(alphabet) - len(special)
    if room < 0:
        needed = len(alphabet) + len(special)
        raise UsageError(f"vocab_size is {vocab_size}: bytes and special tokens are {needed}; give that or more")
    names = alphabet + [f"<unused{number}>" for number in range(room)]
    tokenizer = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return tokenizer


def _drawing(name: str, shape: tuple[int, ...], seed: int) -> Callable[[], Tensor]:
    """Make the function that draws one tensor."""
    def draw() -> Tensor:
        if name.endswith("gate"):
            return torch.full(shape, GATE)
        values = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
        if len(shape) < 2:
            return torch.from_numpy(values).mul_(0.1).add_(1.0 if name.endswith(("weight", "gain")) else 0.0)
        return torch.from_numpy(values).mul_(1 / math.sqrt(math.prod(shape[1:])))

    return draw
