"""The vision transformer against a reference with explicit attention loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from flamingo_rt.model.vit import ViT


def layer_norm(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def slow_attention(x: np.ndarray, w: dict[str, np.ndarray], name: str, heads: int) -> np.ndarray:
    query, key, value = (linear(x, w, f"{name}.{part}") for part in ("query", "key", "value"))
    size = x.shape[1] // heads
    out = np.zeros_like(x)
    for head in range(heads):
        span = slice(head * size, (head + 1) * size)
        for token in range(len(x)):
            scores = [query[token, span] @ key[other, span] / math.sqrt(size) for other in range(len(x))]
            total = sum(math.exp(score) for score in scores)
            for other, score in enumerate(scores):
                out[token, span] += math.exp(score) / total * value[other, span]
    return linear(out, w, f"{name}.output")


def activation(kind: str, x: np.ndarray) -> np.ndarray:
    if kind == "quick_gelu":
        return x / (1 + np.exp(-1.702 * x))
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def slow_vit(picture: np.ndarray, w: dict[str, np.ndarray], config) -> np.ndarray:
    """picture [3, H, W] -> every token [1 + S, D], before the output norm."""
    patch, tokens = config.patch_size, [w["class_token"]]
    for row in range(0, config.image_size, patch):
        for column in range(0, config.image_size, patch):
            window = picture[:, row : row + patch, column : column + patch]
            tokens.append(np.array([(window * kernel).sum() for kernel in w["patches.weight"]]))
    x = layer_norm(np.stack(tokens) + w["positions"], w, "input_norm")
    for index in range(config.layers):
        name = f"blocks.{index}"
        x = x + slow_attention(layer_norm(x, w, f"{name}.attention_norm"), w, name, config.heads)
        hidden = activation(config.activation, linear(layer_norm(x, w, f"{name}.ff_norm"), w, f"{name}.ff.up"))
        x = x + linear(hidden, w, f"{name}.ff.down")
    return x


@pytest.fixture
def pixels(random_tensor):
    return random_tensor(2, 3, 8, 8).double()


@pytest.mark.parametrize("kind", ["quick_gelu", "gelu"])
def test_the_patch_tokens_equal_the_slow_reference(vit_config, randomise, arrays, pixels, kind):
    config = replace(vit_config, activation=kind)
    vit = randomise(ViT(config)).double()
    with torch.no_grad():
        features = vit(pixels).numpy()
    expected = np.stack([slow_vit(picture.numpy(), arrays(vit), config) for picture in pixels])
    assert features.shape == (2, config.feature_count, 16) == (2, 4, 16)
    np.testing.assert_allclose(features, expected[:, 1:], rtol=1e-9, atol=1e-9)


def test_the_class_token_comes_first_when_it_is_kept(vit_config, randomise, arrays, pixels):
    config = replace(vit_config, keep_class_token=True)
    vit = randomise(ViT(config)).double()
    with torch.no_grad():
        features = vit(pixels).numpy()
    expected = np.stack([slow_vit(picture.numpy(), arrays(vit), config) for picture in pixels])
    assert features.shape == (2, config.feature_count, 16) == (2, 5, 16)
    np.testing.assert_allclose(features, expected, rtol=1e-9, atol=1e-9)


def test_the_post_norm_acts_on_the_patch_tokens(vit_config, randomise, arrays, pixels):
    plain, normed = ViT(vit_config), randomise(ViT(replace(vit_config, post_norm=True))).double()
    weights = normed.state_dict()
    plain = plain.double()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    with torch.no_grad():
        before, after = plain(pixels), normed(pixels)
    np.testing.assert_allclose(after, layer_norm(before.numpy(), arrays(normed), "output_norm"), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(before, after, atol=0.1)


def test_quick_and_exact_gelu_differ(vit_config, randomise, pixels):
    with torch.no_grad():
        quick, exact = (
            randomise(ViT(replace(vit_config, activation=kind))).double()(pixels) for kind in ("quick_gelu", "gelu")
        )
    assert (quick - exact).abs().max() > 1e-3


def test_pictures_of_a_batch_do_not_mix(vit_config, randomise, pixels):
    vit = randomise(ViT(vit_config)).double()
    with torch.no_grad():
        torch.testing.assert_close(vit(pixels)[1:], vit(pixels[1:]), rtol=1e-12, atol=1e-12)
