"""The resampler against an explicit reference, and its time embeddings."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from flamingo_rt.config import ResamplerConfig
from flamingo_rt.model.resampler import Resampler, frame_embeddings

PAPER = ResamplerConfig(width=12, layers=2, heads=2, head_width=8, latents=3, max_frames=4)
OPEN_FLAMINGO = ResamplerConfig(
    width=10, layers=2, heads=2, head_width=4, latents=3, max_frames=0, activation="gelu", input_projection=False,
    input_norms=True, final_norm=True,
)
FORMS = pytest.mark.parametrize("config", [PAPER, OPEN_FLAMINGO], ids=["paper", "open_flamingo"])
FEATURE_WIDTH = 10


def layer_norm(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def activation(kind: str, x: np.ndarray) -> np.ndarray:
    if kind == "squared_relu":
        return np.where(x > 0, x * x, 0)
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def slow_resampler(features: np.ndarray, w: dict[str, np.ndarray], config: ResamplerConfig) -> np.ndarray:
    """features [F, S, Dv] of one visual -> latents [L, D]; §A.1.1 with a loop over heads and latents."""
    frames = [frame @ w["input.weight"].T if config.input_projection else frame for frame in features]
    if config.max_frames:
        frames = [frame + w["time"][index] for index, frame in enumerate(frames)]
    flat, latents = np.concatenate(frames), w["latents"]
    for index in range(config.layers):
        name, sources, queries = f"layers.{index}", flat, latents
        if config.input_norms:
            sources = layer_norm(flat, w, f"{name}.feature_norm")
            queries = layer_norm(latents, w, f"{name}.latent_norm")
        sources = np.concatenate([sources, queries])
        query = queries @ w[f"{name}.query.weight"].T
        key, value = (sources @ w[f"{name}.{part}.weight"].T for part in ("key", "value"))
        attended = np.zeros_like(query)
        for head in range(config.heads):
            span = slice(head * config.head_width, (head + 1) * config.head_width)
            for latent in range(config.latents):
                weights = np.exp(key[:, span] @ query[latent, span] / math.sqrt(config.head_width))
                attended[latent, span] = weights @ value[:, span] / weights.sum()
        latents = latents + attended @ w[f"{name}.output.weight"].T
        hidden = layer_norm(latents, w, f"{name}.ff_norm") @ w[f"{name}.ff.up.weight"].T
        latents = latents + activation(config.activation, hidden) @ w[f"{name}.ff.down.weight"].T
    return layer_norm(latents, w, "final_norm") if config.final_norm else latents


@FORMS
@pytest.mark.parametrize("frames", [1, 3])
def test_the_latents_equal_the_slow_reference(config, frames, randomise, random_tensor, arrays):
    resampler = randomise(Resampler(config, FEATURE_WIDTH, 5)).double()
    features = random_tensor(2, frames, 5, FEATURE_WIDTH).double()
    with torch.no_grad():
        latents = resampler(features).numpy()
    expected = np.stack([slow_resampler(visual.numpy(), arrays(resampler), config) for visual in features])
    assert latents.shape == (2, config.latents, config.width)
    np.testing.assert_allclose(latents, expected, rtol=1e-9, atol=1e-9)


@FORMS
def test_the_order_of_features_within_a_frame_does_not_matter(config, randomise, random_tensor):
    resampler = randomise(Resampler(config, FEATURE_WIDTH, 5)).double()
    features = random_tensor(1, 2, 6, FEATURE_WIDTH).double()
    shuffled = features[:, :, [3, 0, 5, 1, 4, 2]]
    with torch.no_grad():
        torch.testing.assert_close(resampler(shuffled), resampler(features), rtol=1e-10, atol=1e-10)


def test_the_order_of_frames_matters_with_time_embeddings_only(randomise, random_tensor):
    features = random_tensor(1, 3, 4, FEATURE_WIDTH).double()
    with torch.no_grad():
        timed = randomise(Resampler(PAPER, FEATURE_WIDTH, 5)).double()
        assert (timed(features.flip(1)) - timed(features)).abs().max() > 1e-3
        timeless = randomise(Resampler(OPEN_FLAMINGO, FEATURE_WIDTH, 5)).double()
        torch.testing.assert_close(timeless(features.flip(1)), timeless(features), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_trained_frame_counts_take_the_first_rows(frames, random_tensor):
    table = random_tensor(8, 6)
    torch.testing.assert_close(frame_embeddings(table, frames), table[:frames], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("trained", "frames"), [(8, 30), (8, 9), (2, 7), (5, 100)])
def test_more_frames_are_interpolated_linearly(trained, frames, random_tensor):
    table = random_tensor(trained, 6).double()
    places = np.linspace(0, trained - 1, frames)
    expected = np.stack([np.interp(places, np.arange(trained), column) for column in table.numpy().T], axis=1)
    np.testing.assert_allclose(frame_embeddings(table, frames).numpy(), expected, rtol=1e-9, atol=1e-9)


def test_a_single_trained_row_serves_every_frame(random_tensor):
    table = random_tensor(1, 6)
    torch.testing.assert_close(frame_embeddings(table, 5), table.expand(5, -1), rtol=0, atol=0)


def test_a_longer_clip_than_trained_still_gives_the_same_number_of_latents(randomise, random_tensor):
    resampler = randomise(Resampler(PAPER, FEATURE_WIDTH, 5))
    with torch.no_grad():
        assert resampler(random_tensor(1, 9, 4, FEATURE_WIDTH)).shape == (1, 3, 12)


def test_spatial_positions_tell_the_cells_apart_and_start_at_nothing(randomise, random_tensor):
    config = replace(PAPER, spatial_positions=True)
    resampler = Resampler(config, FEATURE_WIDTH, 6)
    features = random_tensor(1, 2, 6, FEATURE_WIDTH)
    shuffled = features[:, :, [3, 0, 5, 1, 4, 2]]
    with torch.no_grad():
        torch.testing.assert_close(resampler(shuffled), resampler(features), rtol=1e-4, atol=1e-5)
        randomise(resampler)
        assert (resampler(shuffled) - resampler(features)).abs().max() > 1e-3
