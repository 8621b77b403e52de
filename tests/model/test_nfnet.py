"""NFNet against a slow reference written from the paper (arXiv 2102.06171) with loops over numpy arrays."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from flamingo_rt.config import NFNetConfig
from flamingo_rt.model.flamingo import on_meta_device
from flamingo_rt.model.nfnet import NFNet, StandardisedConv2d, scaled_gelu, standardise

# Expected variance on the way into each block of stages of 3 and 2 blocks: a branch adds 0.2² = 0.04 to it,
# a transition starts again from 1 after its own branch.
VARIANCES = [1.0, 1.04, 1.08, 1.12, 1.04]

# Millions of parameters of F0..F6, table 1 of the NFNet paper, with a classifier of 1000 classes.
PUBLISHED = [71.5, 132.6, 193.8, 254.9, 316.1, 377.2, 438.4]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2 * 1.7015043497085571


def standardised(weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    result = np.empty_like(weights[f"{name}.weight"])
    for channel, kernel in enumerate(weights[f"{name}.weight"]):
        spread = max(((kernel - kernel.mean()) ** 2).sum(), 1e-4)
        result[channel] = (kernel - kernel.mean()) / math.sqrt(spread) * weights[f"{name}.gain"][channel, 0, 0, 0]
    return result


def slow_conv(x: np.ndarray, weights: dict[str, np.ndarray], name: str, stride: int = 1, groups: int = 1) -> np.ndarray:
    """x [C, H, W] -> [O, H', W'], zero-padded by half the kernel."""
    kernel, bias = standardised(weights, name), weights[f"{name}.bias"]
    outputs, per_group, size, _ = kernel.shape
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2))
    side = (padded.shape[1] - size) // stride + 1
    result = np.empty((outputs, side, side))
    for channel in range(outputs):
        group = channel // (outputs // groups)
        source = padded[group * per_group : (group + 1) * per_group]
        for row in range(side):
            for column in range(side):
                window = source[:, row * stride : row * stride + size, column * stride : column * stride + size]
                result[channel, row, column] = (window * kernel[channel]).sum() + bias[channel]
    return result


def slow_pool(x: np.ndarray, stride: int) -> np.ndarray:
    side = math.ceil(x.shape[1] / stride)
    cells = [[x[:, r * stride : (r + 1) * stride, c * stride : (c + 1) * stride].mean((1, 2)) for c in range(side)]
             for r in range(side)]
    return np.array(cells).transpose(2, 0, 1)


def slow_block(
    x: np.ndarray, w: dict[str, np.ndarray], name: str, variance: float, stride: int, first: bool
) -> np.ndarray:
    out = gelu(x) / math.sqrt(variance)
    shortcut = slow_conv(slow_pool(out, stride), w, f"{name}.shortcut") if first else x
    groups = w[f"{name}.conv1.weight"].shape[0] // w[f"{name}.conv1.weight"].shape[1]
    out = gelu(slow_conv(out, w, f"{name}.conv0"))
    out = gelu(slow_conv(out, w, f"{name}.conv1", stride, groups))
    out = gelu(slow_conv(out, w, f"{name}.conv2", 1, groups))
    out = slow_conv(out, w, f"{name}.conv3")
    hidden = np.maximum(w[f"{name}.excite.down.weight"] @ out.mean((1, 2)) + w[f"{name}.excite.down.bias"], 0)
    gate = 1 / (1 + np.exp(-(w[f"{name}.excite.up.weight"] @ hidden + w[f"{name}.excite.up.bias"])))
    return out * gate[:, None, None] * 2 * w[f"{name}.skip_gain"] * 0.2 + shortcut


def slow_nfnet(picture: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    """The network of `nfnet_config`: picture [3, H, W] -> features [S, D]."""
    x = slow_conv(gelu(slow_conv(picture, w, "stem.0", stride=2)), w, "stem.1")
    for index, variance in enumerate(VARIANCES):
        first = index in (0, 3)
        x = slow_block(x, w, f"blocks.{index}", variance, 2 if index == 3 else 1, first)
    x = gelu(slow_conv(x, w, "final"))
    return x.reshape(len(x), -1).T


def test_the_network_equals_the_slow_reference(nfnet_config, randomise, random_tensor, arrays):
    network = randomise(NFNet(nfnet_config)).double()
    pixels = random_tensor(2, 3, 19, 19).double()
    with torch.no_grad():
        features = network(pixels).numpy()
    expected = np.stack([slow_nfnet(picture.numpy(), arrays(network)) for picture in pixels])
    assert features.shape == expected.shape == (2, 25, 12)  # 19 -> 10 -> 5
    np.testing.assert_allclose(features, expected, rtol=1e-9, atol=1e-9)


def test_blocks_are_scaled_by_the_expected_deviation(nfnet_config):
    betas = [block.beta for block in NFNet(nfnet_config).blocks]
    assert betas == pytest.approx([variance**-0.5 for variance in VARIANCES], rel=1e-12)


@pytest.mark.parametrize(("inputs", "kernel", "groups"), [(6, 3, 1), (6, 3, 2), (5, 1, 1)])
def test_standardised_weights_have_no_mean_and_unit_fan_in_variance(inputs, kernel, groups, random_tensor):
    layer = StandardisedConv2d(inputs, 4, kernel, groups=groups)
    with torch.no_grad():
        layer.weight.copy_(3 * random_tensor(*layer.weight.shape) + 5)
    weight = standardise(layer.weight, layer.gain).detach().double().flatten(1)
    assert weight.mean(1).abs().max() < 1e-6
    torch.testing.assert_close(weight.square().sum(1), torch.ones(4, dtype=torch.float64), rtol=1e-5, atol=0)


def test_a_constant_weight_is_not_divided_by_zero():
    layer = StandardisedConv2d(2, 1, 3)
    torch.nn.init.constant_(layer.weight, 0.5)
    assert standardise(layer.weight, layer.gain).abs().max() == 0


def test_the_activation_keeps_the_variance_of_a_normal_input(random_tensor):
    assert scaled_gelu(random_tensor(200_000)).var().item() == pytest.approx(1.0, abs=0.02)


def test_a_block_with_zero_skip_gain_is_its_shortcut(nfnet_config, randomise, random_tensor):
    block = randomise(NFNet(nfnet_config)).blocks[1]
    x = random_tensor(1, 8, 5, 5)
    with torch.no_grad():
        assert not torch.equal(block(x), x)
        block.skip_gain.zero_()
        assert torch.equal(block(x), x)


def test_a_new_network_starts_with_every_skip_gain_at_zero(nfnet_config):
    assert all(block.skip_gain.item() == 0 for block in NFNet(nfnet_config).blocks)


def test_stochastic_depth_acts_in_training_only(nfnet_config, randomise, random_tensor):
    block = randomise(NFNet(replace(nfnet_config, stochastic_depth=0.9))).blocks[4]
    x = random_tensor(32, 16, 4, 4)
    torch.manual_seed(0)
    with torch.no_grad():
        evaluated = block(x)
        dropped = [torch.equal(out, before) for out, before in zip(block.train()(x), x, strict=True)]
    assert block.drop == pytest.approx(0.9 * 4 / 5)
    assert 0 < sum(dropped) < 32
    assert not any(torch.equal(out, before) for out, before in zip(evaluated, x, strict=True))


@pytest.mark.parametrize("size", [8, 16, 19, 21, 27, 30])
@pytest.mark.parametrize("strides", [(1, 2), (2, 2), (2, 1)])
def test_the_number_of_features_is_the_configured_one(nfnet_config, random_tensor, size, strides):
    config = replace(nfnet_config, image_size=size, strides=strides, depths=(1, 1))
    with torch.no_grad():
        features = NFNet(config)(random_tensor(1, 3, size, size))
    assert features.shape == (1, config.feature_count, config.width)


def test_the_papers_encoder_gives_a_hundred_features():
    assert NFNetConfig().feature_count == 100  # 320 / 32 squared


@pytest.mark.parametrize("variant", range(7))
def test_parameters_match_the_published_family(variant):
    with on_meta_device():
        network = NFNet(NFNetConfig(depths=tuple((variant + 1) * depth for depth in (1, 2, 6, 3))))
    count = sum(parameter.numel() for parameter in network.parameters())
    classifier = 3072 * 1000 + 1000
    assert (count + classifier) / 1e6 == pytest.approx(PUBLISHED[variant], abs=0.06)
    if variant == 6:
        assert count / 1e6 == pytest.approx(435.29, abs=0.01)
