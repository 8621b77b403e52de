"""A graph of one matrix product, written by hand: an installed runtime has no ``onnx`` package."""

from __future__ import annotations

import numpy as np

from flamingo_rt.protobuf import field

ELEMENT_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}  # TensorProto.DataType
IR_VERSION, OPSET = 8, 17


def matmul_graph(size: int, dtype: str = "float32", weight: np.ndarray | None = None) -> bytes:
    """An ONNX file: y = x @ w, [size, size] in ``dtype`` each; ``w`` is a constant where a float32 ``weight`` is given,
    else an input."""
    shape = field(1, field(1, size)) * 2
    kind = field(2, field(1, field(1, ELEMENT_TYPES[dtype]) + field(2, shape)))
    graph = [
        field(1, field(1, "x") + field(1, "w") + field(2, "y") + field(4, "MatMul")),
        field(2, "product"),
        field(11, field(1, "x") + kind),
        field(12, field(1, "y") + kind),
    ]
    if weight is None:
        graph.append(field(11, field(1, "w") + kind))
    else:
        described = field(1, size) * 2 + field(2, ELEMENT_TYPES[dtype]) + field(8, "w")
        graph.append(field(5, described + field(9, weight.tobytes())))
    return field(1, IR_VERSION) + field(7, b"".join(graph)) + field(8, field(1, "") + field(2, OPSET))
