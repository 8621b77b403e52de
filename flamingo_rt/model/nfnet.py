"""NFNet-F, a ResNet without normalisation layers (Brock et al., arXiv 2102.06171), the paper's vision encoder (§3.1).

Signal scale is kept by weight standardisation, by scaling each block's input with the inverse of its expected
standard deviation, and by residual branches that start at zero.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flamingo_rt.config import NFNetConfig

# GELU's gain: keeps unit variance through the activation (table 6 of the NFNet reference code).
GELU_GAIN = 1.7015043497085571


def scaled_gelu(x: Tensor) -> Tensor:
    """GELU that preserves the variance of a standard normal input."""
    return F.gelu(x) * GELU_GAIN


def standardise(weight: Tensor, gain: Tensor) -> Tensor:
    """weight [out, in / groups, kh, kw] with zero mean and variance 1 / fan-in for each output channel, times gain
    [out, 1, 1, 1]."""
    fan_in = math.prod(weight.shape[1:])
    variance, mean = torch.var_mean(weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
    return (weight - mean) * torch.rsqrt(torch.clamp(variance * fan_in, min=1e-4)) * gain


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose weight is standardised per output channel before use (arXiv 2101.08692, §4).

    It is padded to keep the size at stride 1.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))
        # The scale does not affect the output, only the relative size of an optimizer's steps.
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)
        nn.init.zeros_(cast(Tensor, self.bias))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, standardise(self.weight, self.gain), self.bias)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate in 0..1, computed from the channels' means over the picture."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean(dim=(2, 3))))))
        return x * gate[:, :, None, None]


class Block(nn.Module):
    """A pre-activation bottleneck block; ``transition`` blocks change width or resolution on the shortcut too."""

    def __init__(
        self, config: NFNetConfig, inputs: int, outputs: int, stride: int, beta: float, transition: bool, drop: float
    ) -> None:
        super().__init__()
        inner = int(outputs * config.bottleneck)
        groups = inner // config.group_width
        self.beta, self.stride, self.drop, self.scale = beta, stride, drop, config.residual_scale
        self.conv0 = StandardisedConv2d(inputs, inner, 1)
        self.conv1 = StandardisedConv2d(inner, inner, 3, stride, groups)
        self.conv2 = StandardisedConv2d(inner, inner, 3, 1, groups)
        self.conv3 = StandardisedConv2d(inner, outputs, 1)
        self.excite = SqueezeExcite(outputs, int(outputs * config.squeeze_excite))
        self.skip_gain = nn.Parameter(torch.zeros(()))
        self.shortcut = StandardisedConv2d(inputs, outputs, 1) if transition else None

    def forward(self, x: Tensor) -> Tensor:
        out = scaled_gelu(x) * self.beta
        shortcut = x
        if self.shortcut is not None:
            pooled = out
            if self.stride > 1:
                pooled = F.avg_pool2d(out, self.stride, ceil_mode=True, count_include_pad=False)
            shortcut = self.shortcut(pooled)
        for layer in (self.conv0, self.conv1, self.conv2):
            out = scaled_gelu(layer(out))
        out = 2.0 * self.excite(self.conv3(out))
        if self.training and self.drop > 0:
            keep = torch.rand(len(out), 1, 1, 1, device=out.device) >= self.drop
            out = out * keep / (1.0 - self.drop)
        return out * self.skip_gain * self.scale + shortcut


class NFNet(nn.Module):
    """pixel_values [N, 3, H, W] -> features [N, S, output_width], the last grid's cells row by row."""

    def __init__(self, config: NFNetConfig) -> None:
        super().__init__()
        widths = (3, *config.stem_widths)
        self.stem = nn.ModuleList(
            StandardisedConv2d(inputs, outputs, 3, stride)
            for inputs, outputs, stride in zip(widths, config.stem_widths, config.stem_strides, strict=False)
        )
        self.blocks = nn.ModuleList(_blocks(config))
        self.final = StandardisedConv2d(config.widths[-1], config.output_width, 1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.stem[0](pixel_values)
        for layer in self.stem[1:]:
            x = layer(scaled_gelu(x))
        for block in self.blocks:
            x = block(x)
        x = scaled_gelu(self.final(x))  # [N, D, h, w]
        return x.flatten(2).transpose(1, 2)


def _blocks(config: NFNetConfig) -> list[Block]:
    blocks: list[Block] = []
    total, inputs, variance = sum(config.depths), config.stem_widths[-1], 1.0
    for outputs, depth, stride in zip(config.widths, config.depths, config.strides, strict=True):
        for position in range(depth):
            first = position == 0
            blocks.append(
                Block(
                    config,
                    inputs,
                    outputs,
                    stride if first else 1,
                    beta=1.0 / math.sqrt(variance),
                    transition=first,
                    drop=config.stochastic_depth * len(blocks) / total,
                )
            )
            # The shortcut of a transition is a fresh convolution of unit variance; each branch then adds scale².
            variance = (1.0 if first else variance) + config.residual_scale**2
            inputs = outputs
    return blocks
