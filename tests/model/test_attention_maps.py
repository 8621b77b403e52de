"""Attention maps: weights that give the layers' own outputs, nothing where nothing is seen, and maps over the grid."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import UsageError
from flamingo_rt.model.attention_maps import (
    attention_maps,
    attention_weights,
    gate_openings,
    recorded_weights,
    shares_of_features,
)
from flamingo_rt.model.cross_attention import Media, media_mask
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.model.layers import merge_heads, split_heads

MEDIA_INDEX = torch.tensor([0, 0, 1, 1, 2, 2, 2])
INPUT_IDS = torch.arange(len(MEDIA_INDEX)) + 3
FRAMES = (1, 2)  # of a picture and a clip


@pytest.fixture
def model(flamingo_config: FlamingoConfig, randomise) -> Flamingo:
    config = replace(flamingo_config, resampler=replace(flamingo_config.resampler, layers=2))
    return randomise(Flamingo(config))


@pytest.fixture
def visuals(random_tensor) -> list[Tensor]:
    return [random_tensor(frames, 3, 8, 8, seed=frames) for frames in FRAMES]


def test_the_weights_of_a_cross_attention_layer_give_its_output(model: Flamingo, random_tensor) -> None:
    layer = model.cross_attention.layers["1"]
    hidden, latents = random_tensor(1, 7, 16), random_tensor(2, 3, 16)
    keys, values = (part[1].transpose(0, 1).flatten(1, 2)[None] for part in model.cross_attention.keys_values(latents))
    bias, present = media_mask(MEDIA_INDEX[None], 6, 3, "last", torch.float32)
    seen = Media([keys], [values], bias, present).of(0)
    with recorded_weights([layer.attend]) as found:
        expected = layer(hidden, seen)
    attended = merge_heads(found[0] @ values)
    hidden = hidden + layer.attention_gate.tanh() * layer.output(attended) * present
    got = hidden + layer.ff_gate.tanh() * layer.ff(layer.ff_norm(hidden))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_the_weights_of_a_resampler_layer_give_its_output(model: Flamingo, random_tensor) -> None:
    layer = model.resampler.layers[0]
    features, latents = random_tensor(2, 4, 16), random_tensor(2, 3, 16, seed=2)
    with recorded_weights([layer.attend]) as found:
        expected = layer(features, latents)
    normed = layer.latent_norm(latents)
    values = split_heads(layer.value(torch.cat([layer.feature_norm(features), normed], dim=1)), layer.attend.heads)
    latents = latents + layer.output(merge_heads(found[0] @ values))
    torch.testing.assert_close(latents + layer.ff(layer.ff_norm(latents)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attend", ["last", "all"])
def test_a_token_attends_to_what_it_sees_and_to_nothing_else(attend: str, model: Flamingo, visuals, randomise) -> None:
    config = replace(model.config, cross_attention=replace(model.config.cross_attention, attend=attend))
    maps = attention_maps(randomise(Flamingo(config)), INPUT_IDS, MEDIA_INDEX, visuals)
    by_visual = maps.over_latents.sum(-1)  # [X, Hx, T, V]
    torch.testing.assert_close(by_visual.sum(-1), (MEDIA_INDEX > 0).float().expand(3, 2, -1))
    assert by_visual[:, :, :2].count_nonzero() == 0
    assert by_visual[:, :, 2:4, 1].count_nonzero() == 0
    assert bool((by_visual[:, :, 4:, 0] > 0).all()) == (attend == "all")


def test_the_map_of_a_token_sums_to_its_attention_on_the_visual(model: Flamingo, visuals: list[Tensor]) -> None:
    maps = attention_maps(model, INPUT_IDS, MEDIA_INDEX, visuals)
    for visual, frames in enumerate(FRAMES):
        over_picture = maps.on_visual(visual)
        assert over_picture.shape == (7, frames, 2, 2)
        expected = (visual + 1 == MEDIA_INDEX).float()
        torch.testing.assert_close(over_picture.sum((1, 2, 3)), expected)


def test_a_map_is_attention_to_latents_times_theirs_to_the_grid(model: Flamingo, visuals: list[Tensor]) -> None:
    maps = attention_maps(model, INPUT_IDS, MEDIA_INDEX, visuals)
    layers, heads, *_, latents = maps.over_latents.shape
    for layer, token in ((0, 4), (2, 6)):
        expected = sum(maps.over_latents[layer, head, token, 1, latent] / heads * maps.over_grid[1][latent]
                       for head in range(heads) for latent in range(latents))
        torch.testing.assert_close(maps.on_visual(1, layer)[token], expected)
    mean = sum(maps.on_visual(1, layer) for layer in range(layers)) / layers
    torch.testing.assert_close(maps.on_visual(1), mean)


def test_the_attention_is_that_of_the_whole_model(model: Flamingo, visuals: list[Tensor]) -> None:
    """`Flamingo.forward` on a batch of one gives the weights of the maps."""
    maps = attention_maps(model, INPUT_IDS, MEDIA_INDEX[:], [visuals[0], visuals[0]])
    with recorded_weights(layer.attend for layer in model.cross_attention.layers.values()) as found:
        model(INPUT_IDS[None], MEDIA_INDEX[None], visuals[0][None], torch.tensor([[0, 0]]))
    seen = maps.over_latents.flatten(-2)[:, :, 2:]
    torch.testing.assert_close(torch.cat(found)[:, :, 2:], seen, atol=1e-6, rtol=1e-5)


def test_a_class_token_has_no_place_on_the_grid(model: Flamingo, visuals: list[Tensor], randomise) -> None:
    config = replace(model.config, vision=replace(model.config.vision, keep_class_token=True))
    maps = attention_maps(randomise(Flamingo(config)), INPUT_IDS, MEDIA_INDEX, visuals)
    assert [grid.shape for grid in maps.over_grid] == [(3, frames, 2, 2) for frames in FRAMES]
    assert all(bool((grid.sum((1, 2, 3)) < 0.999).all()) for grid in maps.over_grid)


def test_shares_follow_latents_to_their_features() -> None:
    first = torch.tensor([[[0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]])  # [heads, 2 latents, 2 features + 2 latents]
    second = torch.tensor([[[0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]]])
    # The first layer gives (1/4, 1/4) and (0, 1/2). Then the first latent takes the second's shares, the second the
    # first feature.
    expected = torch.tensor([[1 / 8, 1 / 8 + 1 / 4], [1 / 2, 1 / 4]])
    torch.testing.assert_close(shares_of_features([first, second], 2), expected / expected.sum(1, keepdim=True))


def test_heads_that_are_split_already_have_the_same_weights(random_tensor) -> None:
    query, key = random_tensor(1, 5, 12), random_tensor(1, 4, 12, seed=2)
    torch.testing.assert_close(attention_weights(query, split_heads(key, 3), 3), attention_weights(query, key, 3))


def test_nothing_is_left_on_the_model_after_an_error(model: Flamingo) -> None:
    attentions = [layer.attend for layer in model.cross_attention.layers.values()]
    with pytest.raises(RuntimeError, match="stop"), recorded_weights(attentions):
        raise RuntimeError("stop")
    assert not any(attention._forward_hooks for attention in attentions)


def test_a_prompt_without_a_picture_is_refused(model: Flamingo) -> None:
    with pytest.raises(UsageError, match="no picture"):
        attention_maps(model, INPUT_IDS, torch.zeros_like(INPUT_IDS), [])


def test_gates_are_told_by_the_language_layer_that_follows(model: Flamingo) -> None:
    with torch.no_grad():
        model.cross_attention.layers["2"].attention_gate.fill_(0.0)
    openings = gate_openings(model)
    assert [opening.layer for opening in openings] == [0, 1, 2]
    assert openings[2].attention == 0
    expected = model.cross_attention.layers["0"].ff_gate.tanh().item()
    assert openings[0].feed_forward == pytest.approx(expected)
