"""The text encoder against a reference with explicit attention loops, written from BERT's description."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flamingo_rt.errors import DataError
from flamingo_rt.model.text_encoder import TextEncoder, TextEncoderConfig

CONFIG = TextEncoderConfig(vocab_size=19, context=9, width=12, layers=2, heads=3, ff_width=20)
EPS = 1e-12


def layer_norm(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def slow_attention(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    query, key, value = (linear(x, w, f"{name}.{part}") for part in ("query", "key", "value"))
    size = CONFIG.width // CONFIG.heads
    out = np.zeros_like(x)
    for head in range(CONFIG.heads):
        span = slice(head * size, (head + 1) * size)
        for token in range(len(x)):
            weights = [math.exp(query[token, span] @ key[other, span] / math.sqrt(size)) for other in range(len(x))]
            for other, weight in enumerate(weights):
                out[token, span] += weight / sum(weights) * value[other, span]
    return linear(out, w, f"{name}.output")


def slow_encoder(ids: list[int], w: dict[str, np.ndarray]) -> np.ndarray:
    """The tokens of one text, without padding -> [D]."""
    x = np.stack([w["tokens.weight"][token] + w["positions"][place] for place, token in enumerate(ids)])
    x = layer_norm(x, w, "input_norm")
    for index in range(CONFIG.layers):
        name = f"layers.{index}"
        x = layer_norm(x + slow_attention(x, w, name), w, f"{name}.attention_norm")
        hidden = gelu(linear(x, w, f"{name}.ff.up"))
        x = layer_norm(x + linear(hidden, w, f"{name}.ff.down"), w, f"{name}.ff_norm")
    return x.mean(0)


def test_the_encoder_equals_the_slow_reference_whatever_the_padding(randomise, arrays) -> None:
    encoder = randomise(TextEncoder(CONFIG)).double()
    texts = [[3, 18, 0, 7, 7], [5], [1, 2, 3, 4, 5, 6, 7, 8, 9]]
    ids, mask = torch.full((3, 9), 11), torch.zeros(3, 9, dtype=torch.bool)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), True
    with torch.no_grad():
        pooled = encoder(ids, mask).numpy()
    expected = np.stack([slow_encoder(text, arrays(encoder)) for text in texts])
    np.testing.assert_allclose(pooled, expected, rtol=1e-9, atol=1e-9)


def test_padding_gets_no_gradient(randomise) -> None:
    encoder = randomise(TextEncoder(CONFIG))
    ids, mask = torch.tensor([[3, 4, 11, 11]]), torch.tensor([[True, True, False, False]])
    encoder(ids, mask).square().sum().backward()
    gradient = encoder.tokens.weight.grad.abs().sum(1)
    assert gradient[[3, 4]].gt(0).all()
    assert gradient[11] == 0
    assert encoder.positions.grad[2:].eq(0).all()


def test_the_default_has_the_size_of_bert_mini() -> None:
    """The published model has 11,170,560 parameters, of which we have no pooler and no segment embeddings."""
    encoder = TextEncoder(TextEncoderConfig(vocab_size=30522, context=512))
    pooler, segments = 256 * 256 + 256, 2 * 256
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 11_170_560 - pooler - segments


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(DataError, match=r"text width 12 is no multiple of 5 heads"):
        TextEncoderConfig(width=12, heads=5)
