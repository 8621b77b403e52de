"""Half precision: the weights of such a bundle, PyTorch's counterpart to compare with, and the cost of rounding.

A graph upcast to float32 (`upcast.py`) must give PyTorch's results with the same rounded weights: this shows that the
graph is right. The effect of rounding after every operator, and overflow, are found by PyTorch with all of its numbers
in half precision. (ONNX Runtime's CPU kernels cannot: they have no bfloat16, and compute float16 in float32 from one
operator to the next.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from flamingo_rt.checkpoints import StoredModel
from flamingo_rt.contract import FEATURES, GRAPHS, LANGUAGE_MODEL, LOGITS, RESAMPLER, VISION_ENCODER
from flamingo_rt.errors import ParityError
from flamingo_rt.export.checks.parity import Deviation
from flamingo_rt.export.checks.parity_cases import Reference, compute_reference
from flamingo_rt.export.streamed_model import streamed_model
from flamingo_rt.weights.lazy import LazyTensor

# Accepted deviation of upcast graphs, in units of rounding (epsilon). Nothing but constants is rounded in them: graphs
# of basic operators (`tensorrt-classic`) hold those of PyTorch's functions, such as the factor of the scores, rounded.
TOLERANCE_UNITS = 2


def half_tolerance(dtype: torch.dtype) -> float:
    """Accepted deviation of an upcast graph, relative to a tensor's scale."""
    return TOLERANCE_UNITS * torch.finfo(dtype).eps


def in_half(stored: StoredModel, dtype: torch.dtype) -> StoredModel:
    """Convert all tensors to ``dtype``, vectors too, since an operator takes one type."""
    return replace(stored, tensors={name: tensor.to(dtype) for name, tensor in stored.tensors.items()})


def compared_with(half: StoredModel, dtype: torch.dtype) -> StoredModel:
    """Weights for PyTorch's float32 counterpart: the rounded ones. Gates are adjusted so that their tanh is that of
    the graph, which holds the tanh itself, rounded."""
    return replace(half, tensors={
        name: _gate(tensor, dtype) if name.endswith("gate") else tensor for name, tensor in half.tensors.items()
    })


def _gate(gate: LazyTensor, dtype: torch.dtype) -> LazyTensor:
    def read() -> Tensor:
        return gate.read().tanh().to(dtype).float().atanh()

    return replace(gate, dtype=torch.float32, read=read)


class RoundedConstants(TorchFunctionMode):
    """Context in which a float32 model multiplies with the constants in its code rounded to ``dtype``, as a graph of
    that type holds them."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Round the factors of multiplications."""
        if func in (Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.mul):
            args = tuple(torch.tensor(x, dtype=self.dtype).item() if isinstance(x, float) else x for x in args)
        return func(*args, **(kwargs or {}))


def half_reference(half: StoredModel, dtype: torch.dtype, on_step: Callable[[int], None]) -> Reference:
    """Compute in float32 what graphs of ``dtype`` should compute with the weights of ``half``. See `compute_reference`
    for ``on_step``."""
    expected = compared_with(half, dtype)
    with RoundedConstants(dtype):
        return compute_reference(streamed_model(expected.config, expected.tensors), on_step)


def rounding_cost(
    half: StoredModel, dtype: torch.dtype, expected: Reference, on_step: Callable[[int], None]
) -> dict[str, float]:
    """Measure the largest deviation of each graph's outputs when PyTorch computes everything in ``dtype``, one graph's
    results going into the next. See `compute_reference` for ``on_step``. Raises `ParityError` on overflow."""
    found = compute_reference(streamed_model(half.config, half.tensors, dtype), on_step)
    cost = _RoundingCost(dtype)
    cost.add(VISION_ENCODER, FEATURES, "pictures", found.features, expected.features)
    for case, wanted in zip(found.cases, expected.cases, strict=True):
        name = case.case.name
        for tensor, values in case.media.items():
            cost.add(RESAMPLER, tensor, name, values, wanted.media[tensor])
        for row, logits in enumerate(case.logits):
            cost.add(LANGUAGE_MODEL, LOGITS, name, logits, wanted.logits[row])
    return cost.largest


class _RoundingCost(Deviation):
    """Largest deviation per graph, of any finite size."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(GRAPHS, math.inf)
        self.dtype = dtype

    def add(self, graph: str, tensor: str, case: str, found: Tensor, expected: Tensor) -> None:
        """Compare one tensor. Raises `ParityError` when it has overflowed."""
        if not found.isfinite().all():
            largest = torch.finfo(self.dtype).max
            remedy = "take --compute bf16" if self.dtype == torch.float16 else "take --compute fp32"
            raise ParityError(
                f"graph {graph}, tensor {tensor}, prompt '{case}': numbers are too large for {self.dtype} "
                f"({largest:.5g}); no bundle was written: {remedy}"
            )
        self.update(graph, tensor, case, found.float().numpy(), expected)
