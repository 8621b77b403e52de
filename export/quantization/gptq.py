"""GPTQ (arXiv 2210.17323): error-aware rounding, where the numbers not yet rounded compensate each rounding error.

The model runs once over the calibration prompts. Just before a layer computes, its weight is rounded for the inputs it
is about to get, and the layer then computes with the rounded weight, so that later layers make up for the errors of
earlier ones.

onnxruntime 1.32 has the algorithm too, but reads the wrong triangle of the inverse Hessian: its result does not depend
on the Hessian and is no better than rounding to the nearest. Hence this implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flamingo_rt.errors import DataError
from flamingo_rt.export.quantization.packed_matrices import QuantizedMatrix, pack
from flamingo_rt.export.quantization.quantization_options import Blocks
from flamingo_rt.model.flamingo import Flamingo

DAMPING = 0.01  # times the mean of the Hessian's diagonal, as in the paper


def round_with_errors(matrix: Tensor, hessian: Tensor, blocks: Blocks) -> QuantizedMatrix:
    """Round ``matrix`` float32 [rows, width] to blocks so that its products with the calibration inputs change least.
    ``hessian`` is the sum of the inputs' outer products, float32 [width, width]."""
    half, size = 2 ** (blocks.bits - 1), blocks.block
    rows, width = matrix.shape
    factor = _inverse_factor(hessian)
    rest = matrix.clone()
    numbers, scales = torch.empty(rows, width), torch.empty(rows, width // size)
    for start in range(0, width, size):
        end = start + size
        scale = _scales(rest[:, start:end], half)
        scales[:, start // size] = scale
        errors = torch.empty(rows, size)
        for column in range(start, end):
            number = (rest[:, column] / scale).round().clamp(-half, half - 1)
            error = (rest[:, column] - number * scale) / factor[column, column]
            rest[:, column + 1 : end] -= error[:, None] * factor[column, column + 1 : end]
            numbers[:, column], errors[:, column - start] = number, error
        rest[:, end:] -= errors @ factor[start:end, end:]  # later blocks at once: same result, much faster
    return pack(numbers.numpy().reshape(rows, -1, size), scales.numpy(), blocks)


def _scales(block: Tensor, half: int) -> Tensor:
    """Scales [rows] of a block [rows, size]. Each row's largest number becomes the lowest integer, -half, since the
    highest is only half - 1."""
    largest = block.gather(1, block.abs().argmax(dim=1, keepdim=True))[:, 0]
    return torch.where(largest == 0, 1.0, largest / -half)


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Upper triangular U, float32 [width, width], with U^T U = the inverse of the damped Hessian. Row i distributes the
    error of column i over the columns after it."""
    damped = hessian.to(torch.float64, copy=True)
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1.0  # an input that is always zero: any rounding of its column will do
    diagonal += DAMPING * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


class LayerRounding:
    """Hooks that round a model's layers while it runs; ``rounded`` collects the results by the name of the weight.

    Running the model raises `DataError` for a layer whose weight or inputs have numbers that are not finite.
    """

    def __init__(
        self, model: Flamingo, blocks_of: Callable[[str], Blocks | None], tokens: Tensor,
        on_layer: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Register the hooks. ``blocks_of`` maps a weight's name to its blocks, or None to leave it alone. ``tokens``,
        bool [rows, T], is False at padding. ``on_layer`` is called with 1 after each layer."""
        self.rounded: dict[str, QuantizedMatrix] = {}
        self._tokens, self._on_layer = tokens, on_layer
        self._last: tuple[Tensor, Tensor] | None = None
        self.layers = 0
        for name, module in model.named_modules():
            blocks = blocks_of(f"{name}.weight") if isinstance(module, nn.Linear) else None
            if blocks is not None:
                self.layers += 1
                module.register_forward_pre_hook(self._hook(f"{name}.weight", blocks))

    def _hook(self, name: str, blocks: Blocks) -> Callable[[nn.Module, Any], None]:
        def round_weight(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            weight, hessian = module.get_parameter("weight").detach(), self._hessian(inputs[0])
            for what, tensor in (("its weight has", weight), ("its inputs on the calibration prompts have", hessian)):
                if not torch.isfinite(tensor).all():
                    raise DataError(
                        f"cannot round {name}: {what} numbers that are not finite or too large to be squared; the "
                        "model is damaged, or its layers' outputs grow without bound: convert or train it again"
                    )
            result = round_with_errors(weight, hessian, blocks)
            self.rounded[name] = result
            module.weight = nn.Parameter(torch.from_numpy(result.dequantized()), requires_grad=False)
            self._on_layer(1)

        return round_weight

    def _hessian(self, inputs: Tensor) -> Tensor:
        """Sum of outer products [width, width] of a layer's inputs [rows, T, width]. Queries, keys and values get the
        same tensor and share it."""
        if self._last is None or self._last[0] is not inputs:
            seen = inputs[self._tokens]
            self._last = (inputs, seen.T @ seen)
        return self._last[1]
