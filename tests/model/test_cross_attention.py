"""Gated cross-attention: silent at first, masked by the last preceding visual, equal to a loop over tokens."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from flamingo_rt.model.cross_attention import (
    CrossAttention,
    GatedCrossAttention,
    media_mask,
    one_after_the_other,
)
from flamingo_rt.model.flamingo import Flamingo

IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
INDEX = torch.tensor([[0, 0, 1, 1, 2, 2, 2, 3]])  # three visuals


def with_cross(config, **changes):
    return replace(config, cross_attention=replace(config.cross_attention, **changes))


def logits_with(model: Flamingo, latents: torch.Tensor, index: torch.Tensor = INDEX) -> torch.Tensor:
    """latents [V, L, D] of one row's visuals -> logits [T, vocab]."""
    with torch.no_grad():
        return model.read(IDS, index, latents, torch.arange(len(latents))[None])[0][0]


def rows(layers: list[torch.Tensor]) -> list[torch.Tensor]:
    """Keys or values of three visuals, [V, Hx, L, d] per layer -> those of a row of all, [1, Hx, V * L, d]."""
    return [one_after_the_other(layer[None]) for layer in layers]


def plain_logits(model: Flamingo) -> torch.Tensor:
    with torch.no_grad():
        return model.language(IDS, torch.arange(8)[None])[0]


def changed_tokens(model: Flamingo, latents: torch.Tensor, visual: int) -> list[bool]:
    """Whether each token's logits change when one visual is replaced by another."""
    other = latents.clone()
    other[visual] = -other[visual] + 0.3
    difference = (logits_with(model, other) - logits_with(model, latents)).abs().amax(-1)
    assert ((difference < 1e-6) | (difference > 1e-4)).all()
    return (difference > 1e-4).tolist()


def test_a_new_model_is_exactly_its_language_model(flamingo_config, random_tensor):
    torch.manual_seed(0)
    model = Flamingo(flamingo_config).eval()
    assert torch.equal(logits_with(model, random_tensor(3, 3, 16)), plain_logits(model))


def test_closing_the_gates_silences_trained_layers(flamingo_config, randomise, random_tensor):
    model = randomise(Flamingo(flamingo_config))
    latents = random_tensor(3, 3, 16)
    assert (logits_with(model, latents) - plain_logits(model)).abs().max() > 1e-2
    with torch.no_grad():
        for layer in model.cross_attention.layers.values():
            layer.attention_gate.zero_()
            layer.ff_gate.zero_()
    assert torch.equal(logits_with(model, latents), plain_logits(model))


@pytest.mark.parametrize(
    ("attend", "visual", "expected"),
    [
        ("last", 0, [0, 0, 1, 1, 0, 0, 0, 0]),
        ("last", 1, [0, 0, 0, 0, 1, 1, 1, 0]),
        ("last", 2, [0, 0, 0, 0, 0, 0, 0, 1]),
        ("all", 0, [0, 0, 1, 1, 1, 1, 1, 1]),
        ("all", 1, [0, 0, 0, 0, 1, 1, 1, 1]),
        ("all", 2, [0, 0, 0, 0, 0, 0, 0, 1]),
    ],
)
def test_only_the_tokens_that_may_look_notice_a_visual(
    flamingo_config, randomise, random_tensor, attend, visual, expected
):
    model, latents = randomise(Flamingo(with_cross(flamingo_config, attend=attend))), random_tensor(3, 3, 16)
    with torch.no_grad():  # silence self-attention, through which a token learns what earlier ones have seen
        for layer in model.language.layers:
            layer.attention.output.weight.zero_()
    assert changed_tokens(model, latents, visual) == [bool(flag) for flag in expected]


def test_text_before_any_visual_never_notices_one(flamingo_config, randomise, random_tensor):
    model = randomise(Flamingo(flamingo_config))
    latents = random_tensor(3, 3, 16)
    for visual, first in ((0, 2), (1, 4), (2, 7)):
        assert changed_tokens(model, latents, visual) == [token >= first for token in range(8)]


def test_text_before_any_visual_reads_as_in_a_text_only_batch(flamingo_config, randomise, random_tensor):
    model = randomise(Flamingo(flamingo_config))
    with torch.no_grad():
        text_only = model.read(IDS, torch.zeros_like(INDEX), None, None)[0][0]
    mixed = logits_with(model, random_tensor(3, 3, 16))
    torch.testing.assert_close(mixed[:2], text_only[:2], rtol=0, atol=1e-6)
    unseen = logits_with(model, random_tensor(3, 3, 16), torch.zeros_like(INDEX))
    torch.testing.assert_close(unseen, text_only, rtol=0, atol=1e-6)


def test_visuals_beyond_a_rows_own_are_never_read(flamingo_config, randomise, random_tensor):
    model = randomise(Flamingo(flamingo_config))
    latents = random_tensor(3, 3, 16)
    padded = torch.cat([latents, 50 * random_tensor(2, 3, 16, seed=5)])
    torch.testing.assert_close(logits_with(model, padded), logits_with(model, latents), rtol=1e-5, atol=1e-5)


def norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """RMSNorm without a bias, LayerNorm with one."""
    if bias is None:
        return x / math.sqrt((x**2).mean() + 1e-5) * weight
    return (x - x.mean()) / math.sqrt(x.var() + 1e-5) * weight + bias


def slow_gated_layer(hidden, media_index, latents, w, attend, heads):
    """hidden [T, D], media_index [T], latents [V, L, Dm] -> [T, D], token by token (§3.1, figure 4)."""
    results = []
    for token, index in zip(hidden, media_index, strict=True):
        if index > 0:
            seen = np.concatenate(latents[:index] if attend == "all" else latents[index - 1 : index])
            query = w["query.weight"] @ norm(token, w["attention_norm.weight"], w.get("attention_norm.bias"))
            keys, values = seen @ w["key.weight"].T, seen @ w["value.weight"].T
            size, read = len(query) // heads, []
            for head in range(heads):
                span = slice(head * size, (head + 1) * size)
                scores = np.exp([query[span] @ key[span] / math.sqrt(size) for key in keys])
                read.append((scores / scores.sum()) @ values[:, span])
            token = token + math.tanh(w["attention_gate"][0]) * (w["output.weight"] @ np.concatenate(read))
        inner = w["ff.up.weight"] @ norm(token, w["ff_norm.weight"], w.get("ff_norm.bias"))
        inner = np.where(inner > 0, inner**2, 0)
        results.append(token + math.tanh(w["ff_gate"][0]) * (w["ff.down.weight"] @ inner))
    return np.stack(results)


@pytest.mark.parametrize("attend", ["last", "all"])
@pytest.mark.parametrize("media_width", [None, 20])
@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_a_layer_equals_a_loop_over_tokens(
    flamingo_config, randomise, random_tensor, arrays, attend, media_width, kind
):
    config = with_cross(
        flamingo_config, attend=attend, media_width=media_width, norm=kind, norm_bias=kind == "layernorm"
    )
    cross = randomise(CrossAttention(config)).double()
    latents, hidden = random_tensor(3, 3, 16).double(), random_tensor(1, 8, 16, seed=2).double()
    with torch.no_grad():
        keys, values = cross.keys_values(latents)
        media = cross.media(INDEX, *(rows(part) for part in (keys, values)))
        result = cross(1, hidden, media)[0].numpy()
    weights = arrays(cross)
    seen = latents.numpy() if media_width is None else latents.numpy() @ weights["projection.weight"].T
    layer = {name.removeprefix("layers.1."): value for name, value in weights.items() if name.startswith("layers.1.")}
    expected = slow_gated_layer(hidden[0].numpy(), INDEX[0].tolist(), seen, layer, attend, heads=2)
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("offset", "first", "expected"), [("first", 0, {0, 2}), ("last", 0, {1}), ("first", 1, {2})])
def test_layers_stand_where_the_rule_says(flamingo_config, randomise, random_tensor, offset, first, expected):
    cross = randomise(CrossAttention(with_cross(flamingo_config, interval=2, offset=offset, first=first)))
    hidden = random_tensor(1, 4, 16)
    with torch.no_grad():
        acting = {layer for layer in range(3) if not torch.equal(cross(layer, hidden, None), hidden)}
    assert acting == expected


def test_each_layer_reads_its_own_keys(flamingo_config, randomise, random_tensor):
    """Use an interval: the i-th pair of keys and values belongs to the i-th gated layer, not to language layer i."""
    cross = randomise(CrossAttention(with_cross(flamingo_config, interval=2)))
    keys, values = cross.keys_values(random_tensor(3, 3, 16))
    hidden = random_tensor(1, 8, 16, seed=2)
    with torch.no_grad():
        together = cross.media(INDEX, rows(keys), rows(values))
        alone = cross.media(INDEX, rows(keys[1:]), rows(values[1:]))
        assert torch.equal(cross(2, hidden, together), cross.layers["2"](hidden, alone.of(0)))


def test_new_gates_are_closed(flamingo_config):
    layer = GatedCrossAttention(flamingo_config)
    assert layer.attention_gate.tolist() == layer.ff_gate.tolist() == [0.0]


def test_the_mask_opens_one_visuals_latents():
    bias, present = media_mask(torch.tensor([[0, 1, 2]]), keys=6, latents=3, attend="last", dtype=torch.float32)
    assert bias.shape == (1, 1, 3, 6)
    assert (bias[0, 0] == 0).int().tolist() == [[0] * 6, [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]
    assert present[..., 0].tolist() == [[0.0, 1.0, 1.0]]


def test_a_mask_of_all_preceding_visuals_grows_with_each():
    bias, present = media_mask(torch.tensor([[0, 1, 2]]), keys=4, latents=2, attend="all", dtype=torch.float32)
    assert (bias[0, 0] == 0).int().tolist() == [[0] * 4, [1, 1, 0, 0], [1] * 4]
    assert bias.max() == 0
    assert bias.min() == torch.finfo(torch.float32).min / 2
    assert present[..., 0].tolist() == [[0.0, 1.0, 1.0]]


def test_a_rows_visuals_stand_one_after_the_other(random_tensor):
    """[B, V, Hx, L, d] by visual -> [B, Hx, V * L, d]: latent l of visual v is key v * L + l of its head."""
    by_visual = random_tensor(2, 3, 4, 5, 6)
    joined = one_after_the_other(by_visual)
    assert joined.shape == (2, 4, 15, 6)
    for visual in range(3):
        for latent in range(5):
            assert torch.equal(joined[:, :, 5 * visual + latent], by_visual[:, visual, :, latent])
