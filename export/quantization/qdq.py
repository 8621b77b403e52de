"""Quantized weights for TensorRT: stored in 8 or 4 bits, with a DequantizeLinear before each product.

TensorRT-RTX 1.7.1 fuses the two into one product, and its engines hold the weights packed. The language model's
matrices are int8 or fp8 by column, or int4 by blocks, as the scheme says; those of the vision encoder and the resampler
are by column. An embedding that is also the head is stored once, with a scale per entry. An embedding that is only
looked up, and convolutions, stay in float.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from flamingo_rt.contract import LANGUAGE_MODEL
from flamingo_rt.errors import DataError
from flamingo_rt.export.graph_weights import SharedResult, add_initializer, parts_of
from flamingo_rt.export.quantization.matmul_nbits import SMALLEST_MATRIX, block_matrix
from flamingo_rt.export.quantization.packed_matrices import QuantizedMatrix
from flamingo_rt.export.quantization.quantization_options import Blocks, Scheme

LARGEST_FP8 = np.float32(448)  # the largest finite e4m3
HALF_SCALES = 19  # first opset whose scales may be float16 and bfloat16


def dequantize_graph(
    name: str, graph: Any, scheme: Scheme, rounded: Mapping[str, QuantizedMatrix] | None = None
) -> dict[str, set[int]]:
    """Quantize the weights of an onnx_ir graph in place. They are read and rounded when the graph is written: to the
    nearest, unless ``rounded`` has them by the name of their tensor. Returns the block sizes used, by kind of matrix
    (`Scheme.kind_of`); matrices quantized by column have none."""
    fitted: dict[str, set[int]] = defaultdict(set)
    for node in list(graph):
        weight = node.inputs[1] if node.op_type in ("MatMul", "Gemm") else None
        if weight is None:
            continue
        if _is_matrix(weight):
            transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0)
            uses = [(user, index) for user, index in weight.uses() if user.op_type == node.op_type and index == 1]
            in_blocks = name == LANGUAGE_MODEL and not transposed
            blocks = scheme.blocks_of(weight.name, int(weight.shape[0])) if in_blocks else None
            if blocks is None or blocks.bits != 4:
                _by_column(graph, uses, weight, 0 if transposed else 1, scheme.floating)
            else:
                _in_blocks(graph, uses, weight, blocks, rounded or {})
                fitted[scheme.kind_of(weight.name)].add(blocks.block)
        elif weight.producer() is not None and weight.producer().op_type == "Transpose":
            table = weight.producer().inputs[0]  # the embedding, transposed as the head: both read one 8-bit table
            if _is_matrix(table) and list(weight.producer().attributes["perm"].value) == [1, 0]:
                _by_column(graph, list(table.uses()), table, 0, scheme.floating)
    return fitted


def _is_matrix(value: Any) -> bool:
    """Whether a value is a two-dimensional weight large enough to quantize. (Relative keys have three dimensions, a
    matrix per head.)"""
    return value.is_initializer() and len(value.shape) == 2 and math.prod(value.shape) >= SMALLEST_MATRIX


def _by_column(graph: Any, uses: list[tuple[Any, int]], weight: Any, outputs: int, floating: bool) -> None:
    """Let ``uses`` read 8-bit numbers with a scale per entry along the axis ``outputs`` of a matrix."""
    import onnx_ir

    shape, dense = tuple(int(size) for size in weight.shape), weight.const_value
    scale_type = _scale_type(graph, weight)
    columns = SharedResult(lambda: _rounded(_float32(dense), outputs, floating, scale_type.numpy(), weight.name))
    kind = onnx_ir.DataType.FLOAT8E4M3FN if floating else onnx_ir.DataType.INT8
    numbers = add_initializer(graph, f"{weight.name}.numbers", kind, shape, lambda: columns()[0])
    scales = add_initializer(
        graph, f"{weight.name}.scales", scale_type, (shape[outputs],), lambda: columns(last=True)[1]
    )
    _dequantized(graph, uses, weight, [numbers, scales], {"axis": outputs})


def _scale_type(graph: Any, weight: Any) -> Any:
    """Type of the scales: the weight's, or float32 before opset 19, whose DequantizeLinear has no other."""
    import onnx_ir

    return weight.dtype if graph.opset_imports[""] >= HALF_SCALES else onnx_ir.DataType.FLOAT


def _in_blocks(
    graph: Any, uses: list[tuple[Any, int]], weight: Any, blocks: Blocks, rounded: Mapping[str, QuantizedMatrix]
) -> None:
    """Let ``uses`` read int4 numbers with a scale per block along the inputs of a matrix [in, out]."""
    import onnx_ir

    width, rows = (int(size) for size in weight.shape)
    matrix = SharedResult(partial(block_matrix, weight.const_value, parts_of(weight), blocks, rounded))
    numbers = add_initializer(
        graph, f"{weight.name}.numbers", onnx_ir.DataType.INT4, (width, rows), lambda: matrix().integers().T
    )
    scales = add_initializer(
        graph, f"{weight.name}.scales", weight.dtype, (width // blocks.block, rows), lambda: matrix(last=True).scales.T
    )
    _dequantized(graph, uses, weight, [numbers, scales], {"axis": 0, "block_size": blocks.block})


def _dequantized(
    graph: Any, uses: list[tuple[Any, int]], weight: Any, inputs: list[Any], attributes: dict[str, int]
) -> None:
    """Let ``uses`` read a DequantizeLinear of ``inputs`` instead of ``weight``."""
    import onnx_ir

    nodes = [onnx_ir.node("DequantizeLinear", inputs, attributes)]
    if inputs[1].dtype != weight.dtype:
        nodes[0].outputs[0].shape, nodes[0].outputs[0].type = weight.shape, inputs[1].type
        nodes.append(onnx_ir.node("Cast", nodes[0].outputs, {"to": weight.dtype}))
    result = nodes[-1].outputs[0]
    result.shape, result.type, result.name = weight.shape, weight.type, f"{weight.name}.dequantized"
    first = next(entry for entry in graph if any(entry is user for user, _ in uses))
    graph.insert_before(first, nodes)
    for user, index in uses:
        user.replace_input_with(index, result)
    if not list(weight.uses()):
        graph.initializers.pop(weight.name)


def _rounded(
    matrix: np.ndarray, outputs: int, floating: bool, scale_type: np.dtype, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Round a matrix to int8 or fp8 with a scale per row (``outputs`` 0) or column (1), float32 [outputs]. Numbers are
    rounded with the scales as they are stored. Raises `DataError` for a weight that is not finite."""
    import ml_dtypes

    by_column = matrix if outputs else matrix.T
    largest = np.abs(by_column).max(axis=0)
    if not np.isfinite(largest).all():
        raise DataError(f"weight {name} has numbers that are not finite: it cannot be quantized")
    most = LARGEST_FP8 if floating else np.float32(127)
    smallest = np.float32(ml_dtypes.finfo(scale_type).smallest_normal)
    scales = np.maximum(largest / most, smallest).astype(scale_type).astype(np.float32)
    scaled = np.clip(by_column / scales, -most, most)
    numbers = scaled.astype(ml_dtypes.float8_e4m3fn) if floating else np.rint(scaled).astype(np.int8)
    return numbers if outputs else numbers.T, scales


def _float32(tensor: Any) -> np.ndarray:
    return tensor.numpy().astype(np.float32)
