"""Tensors of a graph that are computed when they are written, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def lazy_tensor(name: str, dtype: Any, shape: Sequence[int], read: Callable[[], Any]) -> Any:
    """An onnx_ir tensor of this ``dtype`` (onnx_ir's) and shape; ``read`` gives its numbers when they are asked for, as
    a numpy array or a PyTorch tensor."""
    import onnx_ir

    return onnx_ir.LazyTensor(
        lambda: onnx_ir.tensor(read(), name=name), dtype=dtype, shape=onnx_ir.Shape(shape), name=name
    )


class Once:
    """Computes a value when it is first asked for, and forgets it with the last question: two tensors that are written
    one after the other come from one matrix."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        self._compute, self._value = compute, None

    def __call__(self, last: bool = False) -> Any:
        value = self._compute() if self._value is None else self._value
        self._value = None if last else value
        return value
