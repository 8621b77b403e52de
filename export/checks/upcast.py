"""A graph of half precision as one that computes in float32 with the same weights: what can be compared exactly.

Half precision rounds after every operator, so its results say little about whether a graph is right; and ONNX Runtime's
CPU kernels know no bfloat16 at all. The widened graph has every operator of the original and reads the same weight
file; only the types differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flamingo_rt.graph_files import GraphFile, read_graph

UPCAST = ".widened.onnx"


def write_upcast(path: Path) -> GraphFile:
    """Write the widened twin of the graph in ``path`` beside it. It reads the original's weight file."""
    import onnx_ir

    model = onnx_ir.load(path)
    upcast(model.graph)
    twin = path.with_suffix(UPCAST)
    onnx_ir.save(model, twin)
    return read_graph(twin, path.with_name(f"{path.name}.data"))


def upcast(graph: Any) -> None:
    """Let an onnx_ir graph of half precision compute in float32, in place."""
    import onnx_ir

    wide = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    half = (onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)
    for node in list(graph):
        for name, attribute in list(node.attributes.items()):
            if name == "to" and attribute.value in half:
                node.attributes.add(onnx_ir.AttrInt64(name, onnx_ir.DataType.FLOAT))
            elif attribute.type == onnx_ir.AttributeType.TENSOR and attribute.value.dtype in half:
                values = attribute.value.numpy().astype(np.float32)
                node.attributes.add(onnx_ir.AttrTensor(name, onnx_ir.tensor(values)))
        for output in node.outputs:
            if output.dtype in half:
                output.type = wide
    for value in graph.inputs:
        if value.dtype in half:
            value.type = wide
    first = next(iter(graph))
    for value in [value for value in graph.initializers.values() if value.dtype in half]:
        cast = onnx_ir.node("Cast", [value], {"to": onnx_ir.DataType.FLOAT})
        cast.outputs[0].shape, cast.outputs[0].type = value.shape, wide
        for user, index in list(value.uses()):
            user.replace_input_with(index, cast.outputs[0])
        cast.replace_input_with(0, value)
        graph.insert_before(first, cast)
