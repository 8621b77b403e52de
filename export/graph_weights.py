"""Putting the weights into traced graphs, and the graphs on disk, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flamingo_rt.weights.lazy import LazyTensor

# Alignment of large tensors in the weight file: a page, so that runtimes can map each one by itself.
PAGE = 4096
# Tensors up to this size stay in the .onnx file.
INLINE_BYTES = 256


@dataclass(frozen=True)
class Weights:
    """The model's tensors as they are to be stored. In a graph that computes in float32, ``matrices`` in another type
    get a Cast behind each of them; one that computes in half precision takes all tensors in its own type."""

    tensors: Mapping[str, LazyTensor]
    matrices: torch.dtype = torch.float32

    def bind(self, model: Any) -> None:
        """Give the initializers of an onnx_ir model the values of our tensors, in the type it computes in, transposed
        where the graph transposes them. Nothing is read but what the optimizer computes with: single numbers, such as
        gates."""
        for name, value in list(model.graph.initializers.items()):
            tensor = self.tensors.get(tensor_name(name))
            if tensor is not None:
                value.const_value = _lazy(name, tensor, value.dtype)
        _fold_transposes(model.graph, self._transposed)

    def _transposed(self, name: str) -> LazyTensor | None:
        tensor = self.tensors.get(tensor_name(name))
        if tensor is None:
            return None
        return replace(tensor, shape=tensor.shape[::-1], read=lambda: tensor.read().t().contiguous())

    def store(self, model: Any) -> None:
        """Make a float32 graph hold its matrices in their type, with a Cast behind each. After the optimizer has run:
        it would compute the Casts."""
        if self.matrices == torch.float32:
            return
        for value in list(model.graph.initializers.values()):
            ours = all(part in self.tensors for part, _ in parts_of(value))  # no constant of the graph
            if ours and len(value.shape) > 1:
                _cast_behind(model.graph, value, self.matrices)


def external_bytes(model: Any) -> int:
    """Bytes that `save_graph` writes beside the graph, and reports."""
    sizes = (value.const_value.nbytes for value in model.graph.initializers.values())
    return sum(size for size in sizes if size > INLINE_BYTES)


def save_graph(model: Any, path: Path, on_tensor: Callable[[str, int], None] = lambda name, size: None) -> None:
    """Write ``path`` and ``path``.data; ``on_tensor`` hears of every tensor and its bytes."""
    import onnx_ir

    onnx_ir.save(
        model, path, external_data=f"{path.name}.data", alignment=PAGE, size_threshold_bytes=INLINE_BYTES,
        callback=lambda tensor, info: on_tensor(tensor.name or "", tensor.nbytes),
    )


def _lazy(name: str, tensor: LazyTensor, kind: Any) -> Any:
    """The tensor as onnx_ir wants it: of the type ``kind``, read when it is written."""
    dtype = getattr(torch, {"FLOAT": "float32"}.get(kind.name, kind.name.lower()))
    return lazy_tensor(name, kind, tensor.shape, tensor.to(dtype).read)


def _fold_transposes(graph: Any, transposed: Callable[[str], LazyTensor | None]) -> None:
    """Store the weight of a Linear as MatMul wants it, instead of transposing it at run time.

    A weight that something else reads as it is (a tied embedding) stays, with its Transpose: stored once.
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
            const_value=_lazy(name, tensor, weight.dtype),
        )
        graph.initializers.add(stored)
        node.outputs[0].replace_all_uses_with(stored)
        graph.remove(node, safe=True)
        graph.initializers.pop(weight.name)


def _cast_behind(graph: Any, value: Any, dtype: torch.dtype) -> None:
    """Turn a float32 initializer into one of ``dtype``; what reads it gets it through a Cast. What only takes or moves
    values, such as a Gather of a few rows of a large table, does so before the Cast."""
    import onnx_ir

    kind = {torch.float16: onnx_ir.DataType.FLOAT16, torch.bfloat16: onnx_ir.DataType.BFLOAT16}[dtype]
    full = value.const_value
    uses = list(value.uses())
    value.const_value = lazy_tensor(value.name, kind, full.shape, lambda: _torch(full).to(dtype))
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


def _torch(tensor: Any) -> Tensor:
    return torch.from_numpy(tensor.numpy().copy())


# From an initializer's name in a graph to the tensor's name in the model: what the wrappers put in front.
WRAPPER = "model."
TRANSPOSED = ".transposed"
PARTS = "parts"  # in the metadata of a weight that was changed: what `parts_of` gives


def tensor_name(initializer: str) -> str:
    """The model's name of the tensor that an initializer holds."""
    return initializer.removeprefix(WRAPPER).removesuffix(TRANSPOSED)


def parts_of(weight: Any) -> list[tuple[str, float]]:
    """The model's tensors that stand side by side in a weight, each with the factor it is multiplied by."""
    return weight.meta.get(PARTS) or [(tensor_name(weight.name), 1.0)]


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
