"""Upcasting: a half-precision graph as one that computes in float32 with the same weights, for an exact comparison.

Half precision rounds after every operator, so that its results say little about whether a graph is right; and ONNX
Runtime's CPU kernels have no bfloat16 at all. The upcast graph has every operator of the original and reads the same
weight file; only the types differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flamingo_rt.graph_files import GraphFile, read_graph

UPCAST = ".upcast.onnx"


def write_upcast(path: Path) -> GraphFile:
    """Write the upcast twin of the graph in ``path`` beside it. The twin reads the original's weight file."""
    import onnx_ir

    model = onnx_ir.load(path)
    upcast(model.graph)
    twin = path.with_suffix(UPCAST)
    onnx_ir.save(model, twin)
    return read_graph(twin, path.with_name(f"{path.name}.data"))


def upcast(graph: Any) -> None:
    """Let an onnx_ir graph of half precision compute in float32, in place."""
    for node in list(graph):
        _upcast_attributes(node)
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        if _is_half(value.dtype):
            value.type = _float_type()
    _cast_weights(graph)


def _upcast_attributes(node: Any) -> None:
    """Let a Cast go to float32, and hold constants in float32."""
    import onnx_ir

    for name, attribute in list(node.attributes.items()):
        if name == "to" and _is_half(attribute.value):
            node.attributes.add(onnx_ir.AttrInt64(name, onnx_ir.DataType.FLOAT))
        elif attribute.type == onnx_ir.AttributeType.TENSOR and _is_half(attribute.value.dtype):
            values = attribute.value.numpy().astype(np.float32)
            node.attributes.add(onnx_ir.AttrTensor(name, onnx_ir.tensor(values)))


def _cast_weights(graph: Any) -> None:
    """Put a Cast after each half-precision initializer, which keeps its place in the weight file."""
    import onnx_ir

    first = next(iter(graph))
    for value in [value for value in graph.initializers.values() if _is_half(value.dtype)]:
        cast = onnx_ir.node("Cast", [value], {"to": onnx_ir.DataType.FLOAT})
        cast.outputs[0].shape, cast.outputs[0].type = value.shape, _float_type()
        for user, index in list(value.uses()):
            user.replace_input_with(index, cast.outputs[0])
        cast.replace_input_with(0, value)
        graph.insert_before(first, cast)


def _is_half(dtype: Any) -> bool:
    import onnx_ir

    return dtype in (onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)


def _float_type() -> Any:
    import onnx_ir

    return onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
