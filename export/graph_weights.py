"""Weights of the exported graphs: bound lazily, stored in their type, written one tensor in memory at a time.

A traced graph has initializers without values. `Weights.bind` gives them the model's tensors, still on disk; whatever
later changes a weight (simplification, quantization) wraps it in another lazy tensor (`lazy_tensor`), and records in
the initializer's metadata which tensors of the model it holds (`parts_of`). `Weights.store` turns float32 matrices into
half-precision ones with a Cast after each. `save_graph` then reads, computes and writes each tensor in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from flamingo_rt.weights.lazy import LazyTensor

T = TypeVar("T")

# Alignment of large tensors in the weight file: a page, so that runtimes can map each one by itself.
PAGE = 4096
# Tensors up to this size stay in the .onnx file.
INLINE_BYTES = 256

# An initializer is named after the model's tensor: after the attribute of the graph module that holds the model, and
# with a suffix where it was transposed.
MODEL_ATTRIBUTE = "model."
TRANSPOSED = ".transposed"
PARTS = "parts"  # metadata key of an initializer that holds several tensors, or scaled ones


@dataclass(frozen=True)
class Weights:
    """The model's tensors as they are to be stored. In a graph that computes in float32, ``matrices`` of another type
    get a Cast after each of them; a graph that computes in half precision takes all tensors in its own type."""

    tensors: Mapping[str, LazyTensor]
    matrices: torch.dtype = torch.float32

    def bind(self, model: Any) -> None:
        """Give the initializers of an onnx_ir model the model's tensors, in the type the graph computes in, transposed
        where the graph transposes them. Only what the optimizer folds is read: single numbers, such as gates."""
        for name, value in list(model.graph.initializers.items()):
            tensor = self.tensors.get(tensor_name(name))
            if tensor is not None:
                value.const_value = _initializer_tensor(name, tensor, value.dtype)
        _fold_transposes(model.graph, self._transposed)

    def store(self, model: Any) -> None:
        """Make a float32 graph hold its matrices in their type, with a Cast after each. Call it after the optimizer,
        which would fold the Casts."""
        if self.matrices == torch.float32:
            return
        for value in list(model.graph.initializers.values()):
            of_the_model = all(part in self.tensors for part, _ in parts_of(value))  # not a constant of the graph
            if of_the_model and len(value.shape) > 1:
                _cast_behind(model.graph, value, self.matrices)

    def _transposed(self, name: str) -> LazyTensor | None:
        tensor = self.tensors.get(tensor_name(name))
        if tensor is None:
            return None
        return replace(tensor, shape=tensor.shape[::-1], read=lambda: tensor.read().t().contiguous())


def tensor_name(initializer: str) -> str:
    """The model's name of the tensor that an initializer holds."""
    return initializer.removeprefix(MODEL_ATTRIBUTE).removesuffix(TRANSPOSED)


def parts_of(weight: Any) -> list[tuple[str, float]]:
    """The model's tensors that stand side by side in an initializer, each with the factor it is multiplied by."""
    return weight.meta.get(PARTS) or [(tensor_name(weight.name), 1.0)]


def save_graph(model: Any, path: Path, on_tensor: Callable[[str, int], None] = lambda name, size: None) -> None:
    """Write ``path`` and ``path``.data. ``on_tensor`` is called with each tensor's name and bytes."""
    import onnx_ir

    onnx_ir.save(
        model, path, external_data=f"{path.name}.data", alignment=PAGE, size_threshold_bytes=INLINE_BYTES,
        callback=lambda tensor, info: on_tensor(tensor.name or "", tensor.nbytes),
    )


def external_bytes(model: Any) -> int:
    """Bytes that `save_graph` writes to ``path``.data, and reports."""
    sizes = (value.const_value.nbytes for value in model.graph.initializers.values())
    return sum(size for size in sizes if size > INLINE_BYTES)


def lazy_tensor(name: str, dtype: Any, shape: Sequence[int], read: Callable[[], np.ndarray | Tensor]) -> Any:
    """Make an onnx_ir tensor of an onnx_ir ``dtype``. ``read`` returns its numbers when they are needed."""
    import onnx_ir

    return onnx_ir.LazyTensor(
        lambda: onnx_ir.tensor(read(), name=name), dtype=dtype, shape=onnx_ir.Shape(shape), name=name
    )


def add_initializer(
    graph: Any, name: str, dtype: Any, shape: Sequence[int], read: Callable[[], np.ndarray]
) -> Any:
    """Add an initializer of an onnx_ir ``dtype`` to a graph and return it. ``read`` returns its array when the graph is
    written, to be converted to the type."""
    import onnx_ir

    value = onnx_ir.Value(
        name=name, shape=onnx_ir.Shape(shape), type=onnx_ir.TensorType(dtype),
        const_value=lazy_tensor(
            name, dtype, shape, lambda: np.ascontiguousarray(read()).astype(dtype.numpy(), copy=False)
        ),
    )
    graph.initializers.add(value)
    return value


class SharedResult(Generic[T]):
    """A computed value that several tensors are made from, such as numbers and scales: computed at the first call,
    forgotten after the last, so that it does not stay in memory."""

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute = compute
        self._value: T | None = None

    def __call__(self, last: bool = False) -> T:
        value = self._compute() if self._value is None else self._value
        self._value = None if last else value
        return value


def _initializer_tensor(name: str, tensor: LazyTensor, kind: Any) -> Any:
    """The tensor as an onnx_ir one of the type ``kind``."""
    dtype = getattr(torch, {"FLOAT": "float32"}.get(kind.name, kind.name.lower()))
    return lazy_tensor(name, kind, tensor.shape, tensor.to(dtype).read)


def _fold_transposes(graph: Any, transposed: Callable[[str], LazyTensor | None]) -> None:
    """Store the weight of a Linear as MatMul wants it, instead of transposing it at run time.

    A weight that is also read untransposed (a tied embedding) keeps its Transpose, so that it is stored once.
    """
    import onnx_ir

    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or not weight.is_initializer() or list(node.attributes["perm"].value) != [1, 0]:
            continue
        if node.outputs[0].is_graph_output():
            continue
        tensor = transposed(weight.name) if len(list(weight.uses())) == 1 else None
        if tensor is None:
            continue
        name = f"{weight.name}{TRANSPOSED}"
        stored = onnx_ir.Value(
            name=name, shape=onnx_ir.Shape(tensor.shape), type=weight.type,
            const_value=_initializer_tensor(name, tensor, weight.dtype),
        )
        graph.initializers.add(stored)
        node.outputs[0].replace_all_uses_with(stored)
        graph.remove(node, safe=True)
        graph.initializers.pop(weight.name)


def _cast_behind(graph: Any, value: Any, dtype: torch.dtype) -> None:
    """Turn a float32 initializer into one of ``dtype``, which its readers get through a Cast. The Cast goes after a
    Gather or Transpose, which only moves values: a Gather takes a few rows of a large table."""
    import onnx_ir

    kind = {torch.float16: onnx_ir.DataType.FLOAT16, torch.bfloat16: onnx_ir.DataType.BFLOAT16}[dtype]
    full = value.const_value
    uses = list(value.uses())
    value.const_value = lazy_tensor(
        value.name, kind, full.shape, lambda: torch.from_numpy(full.numpy().copy()).to(dtype)
    )
    value.type = onnx_ir.TensorType(kind)
    for node, index in uses:
        if node.op_type in ("Gather", "Transpose") and index == 0:
            output = node.outputs[0]
            cast = onnx_ir.node("Cast", [output], {"to": onnx_ir.DataType.FLOAT})
            cast.outputs[0].shape, cast.outputs[0].type = output.shape, output.type
            output.replace_all_uses_with(cast.outputs[0])
            cast.replace_input_with(0, output)
            output.type = onnx_ir.TensorType(kind)
            graph.insert_after(node, cast)
        else:
            cast = onnx_ir.node("Cast", [value], {"to": onnx_ir.DataType.FLOAT})
            cast.outputs[0].shape, cast.outputs[0].type = value.shape, onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
            node.replace_input_with(index, cast.outputs[0])
            graph.insert_before(node, cast)
