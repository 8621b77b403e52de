"""Graphs of a few operators, run by ONNX Runtime: what an operator computes, asked of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

MICROSOFT = "com.microsoft"
OPSET = 21


def session(model: onnx.ModelProto | str) -> onnxruntime.InferenceSession:
    """A session on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    source = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_nodes(
    nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Run a graph of these nodes, and return the output of the last one."""
    kind = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        list(nodes), "few",
        [helper.make_tensor_value_info(name, kind(array.dtype), array.shape) for name, array in inputs.items()],
        [helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return session(model).run(None, dict(inputs))[0]


def matmul_nbits(x: np.ndarray, matrix: Any, accuracy_level: int = 1) -> np.ndarray:
    """x @ matrix.T by the operator that multiplies blocks; accuracy level 1 is float32."""
    rows, width = matrix.packed.shape[0], matrix.scales.shape[1] * matrix.blocks.block
    node = helper.make_node(
        "MatMulNBits", ["x", "packed", "scales"], ["y"], domain=MICROSOFT, K=width, N=rows, bits=matrix.blocks.bits,
        block_size=matrix.blocks.block, accuracy_level=accuracy_level,
    )
    return run_nodes([node], {"x": x}, {"packed": matrix.packed, "scales": matrix.scales})
