"""Bundles that compute in half precision: their weights, what PyTorch must compute to be compared with them, and what
half precision itself costs.

A graph is compared twice. Widened to float32 (`widening.py`) it must give what PyTorch gives with the same rounded
weights: that shows that the graph is right. As it is, it shows what rounding after every operator does, and whether
numbers become too large; ONNX Runtime's CPU kernels can tell for float16 alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from flamingo_rt.checkpoints import StoredModel
from flamingo_rt.errors import ParityError
from flamingo_rt.export.parity import Deviation
from flamingo_rt.weights.lazy import LazyTensor

# Of the widened graphs: constants in the code, such as an activation's, are rounded to half precision in them, and not
# in PyTorch. Units of rounding; a graph without such constants deviates as one in float32.
TOLERANCE_UNITS = 8


def half_tolerance(dtype: torch.dtype) -> float:
    """The deviation of a widened graph that is accepted, relative to a tensor's scale."""
    return TOLERANCE_UNITS * torch.finfo(dtype).eps


def in_half(stored: StoredModel, dtype: torch.dtype) -> StoredModel:
    """All tensors in ``dtype``, vectors too: an operator takes one type."""
    return replace(stored, tensors={name: tensor.to(dtype) for name, tensor in stored.tensors.items()})


def compared_with(half: StoredModel, dtype: torch.dtype) -> StoredModel:
    """What PyTorch is given, in float32: the rounded weights, and of gates those whose tanh is the graph's, which was
    rounded too."""
    return replace(half, tensors={
        name: _gate(tensor, dtype) if name.endswith("gate") else tensor for name, tensor in half.tensors.items()
    })


def _gate(gate: LazyTensor, dtype: torch.dtype) -> LazyTensor:
    def read() -> Tensor:
        return gate.read().tanh().to(dtype).float().atanh()

    return replace(gate, dtype=torch.float32, read=read)


class RoundingCost(Deviation):
    """The largest deviation per graph that half precision makes; however large, as long as it is finite."""

    def __init__(self, graphs: Sequence[str]) -> None:
        super().__init__(graphs, np.inf)

    def check(self, graph: str, tensor: str, case: str, found: np.ndarray, expected: Tensor) -> None:
        """Take one tensor. Raises `ParityError` when numbers became too large for float16."""
        if not np.isfinite(found).all():
            raise ParityError(
                f"graph {graph}, tensor {tensor}, prompt '{case}': numbers too large for fp16 (65504); no bundle was "
                "written: take --compute bf16"
            )
        super().check(graph, tensor, case, found, expected)
