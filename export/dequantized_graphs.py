"""Weights of fewer bits for TensorRT: stored as they are quantized, a DequantizeLinear before each product.

TensorRT takes the pair for one product whose weights stay packed in memory. The language model's matrices are int8 or
fp8 by column, or int4 by blocks, as its scheme says; the vision encoder's and the resampler's are by column. Where the
embedding is also the head, it is stored once, with a scale for each entry; one that is only looked up in stays as it
is, as convolutions do.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flamingo_rt.contract import LANGUAGE_MODEL
from flamingo_rt.export.blocks import QuantizedMatrix, round_to_nearest, stacked
from flamingo_rt.export.lazy_tensors import Once, lazy_tensor
from flamingo_rt.export.naming import parts_of
from flamingo_rt.export.quantized_graphs import SMALLEST_MATRIX, columns
from flamingo_rt.export.schemes import Scheme

LARGEST_FP8 = np.float32(448)  # of e4m3


def dequantize_graph(
    name: str, graph: Any, scheme: Scheme, rounded: Mapping[str, QuantizedMatrix] | None = None
) -> dict[str, set[int]]:
    """Replace the weights of an onnx_ir graph, in place. They are read and rounded when they are written, to the
    nearest, unless ``rounded`` has them by the name of their tensor. Returns the sizes of block that each kind of
    matrix has got; columns have none."""
    fitted: dict[str, set[int]] = defaultdict(set)
    for node in list(graph):
        weight = node.inputs[1] if node.op_type in ("MatMul", "Gemm") else None
        if weight is not None and weight.producer() is not None:
            _tied_head(graph, node, weight.producer(), scheme)
            continue
        if weight is None or not weight.is_initializer() or math.prod(weight.shape) < SMALLEST_MATRIX:
            continue
        if len(weight.shape) != 2:
            continue  # a matrix for each head, of relative positions
        outputs = 0 if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) else 1
        blocks = scheme.blocks_of(weight.name) if name == LANGUAGE_MODEL else None
        if blocks is not None and blocks.bits == 4 and outputs == 1:
            blocks = blocks.fitting(int(weight.shape[0]))
            if blocks is None:
                continue
            _in_blocks(graph, node, weight, blocks, rounded or {})
            fitted[scheme.kind_of(weight.name)].add(blocks.block)
        else:
            _by_column(graph, [(node, 1)], weight, outputs, scheme.floating)
    return fitted


def _tied_head(graph: Any, head: Any, transpose: Any, scheme: Scheme) -> None:
    """The head's product with the embedding transposed: both read one table in 8 bits."""
    table = transpose.inputs[0] if transpose.op_type == "Transpose" else None
    if table is not None and table.is_initializer() and math.prod(table.shape) >= SMALLEST_MATRIX:
        _by_column(graph, list(table.uses()), table, 0, scheme.floating)


def _by_column(graph: Any, uses: list[tuple[Any, int]], weight: Any, outputs: int, floating: bool) -> None:
    """8-bit numbers, and a scale for each of the entries along the axis ``outputs`` of a matrix."""
    import onnx_ir

    shape, dense = tuple(int(size) for size in weight.shape), weight.const_value
    once = Once(lambda: _rounded(_float32(dense), outputs, floating))
    kind = onnx_ir.DataType.FLOAT8E4M3FN if floating else onnx_ir.DataType.INT8
    numbers = _initializer(graph, f"{weight.name}.numbers", kind, shape, lambda: once()[0])
    scales = _initializer(graph, f"{weight.name}.scales", weight.dtype, (shape[outputs],), lambda: once(last=True)[1])
    _dequantized(graph, uses, weight, [numbers, scales], {"axis": outputs})


def _in_blocks(graph: Any, node: Any, weight: Any, blocks: Any, rounded: Mapping[str, QuantizedMatrix]) -> None:
    """int4 numbers, and a scale for each block along the inputs of a matrix [in, out]."""
    import onnx_ir

    width, rows = (int(size) for size in weight.shape)
    dense, parts = weight.const_value, parts_of(weight)

    def compute() -> QuantizedMatrix:
        if all(name in rounded for name, _ in parts):
            return stacked([rounded[name].scaled(factor) for name, factor in parts])
        return round_to_nearest(_float32(dense).T, blocks)

    once = Once(compute)
    numbers = _initializer(
        graph, f"{weight.name}.numbers", onnx_ir.DataType.INT4, (width, rows), lambda: once().integers().T
    )
    scales = _initializer(
        graph, f"{weight.name}.scales", weight.dtype, (width // blocks.block, rows), lambda: once(last=True).scales.T
    )
    _dequantized(graph, [(node, 1)], weight, [numbers, scales], {"axis": 0, "block_size": blocks.block})


def _dequantized(
    graph: Any, uses: list[tuple[Any, int]], weight: Any, inputs: list[Any], attributes: dict[str, int]
) -> None:
    """Let ``uses`` read what a DequantizeLinear of ``inputs`` gives instead of ``weight``."""
    import onnx_ir

    node = onnx_ir.node("DequantizeLinear", inputs, attributes)
    node.outputs[0].shape, node.outputs[0].type = weight.shape, weight.type
    node.outputs[0].name = f"{weight.name}.dequantized"
    first = next(entry for entry in graph if any(entry is user for user, _ in uses))
    graph.insert_before(first, node)
    for user, index in uses:
        user.replace_input_with(index, node.outputs[0])
    if not list(weight.uses()):
        graph.initializers.pop(weight.name)


def _rounded(matrix: np.ndarray, outputs: int, floating: bool) -> tuple[np.ndarray, np.ndarray]:
    """The numbers, int8 or fp8, and the scales of a matrix by its rows (``outputs`` 0) or its columns (1)."""
    by_column = matrix if outputs else matrix.T
    if floating:
        import ml_dtypes

        scales = np.maximum(np.abs(by_column).max(axis=0), 1e-30) / LARGEST_FP8
        numbers = (by_column / scales).astype(ml_dtypes.float8_e4m3fn)
    else:
        numbers, scales = columns(by_column)
    return numbers if outputs else numbers.T, scales


def _float32(tensor: Any) -> np.ndarray:
    return tensor.numpy().astype(np.float32)


def _initializer(graph: Any, name: str, kind: Any, shape: tuple[int, ...], read: Callable[[], np.ndarray]) -> Any:
    """A new one of the type ``kind``, which is computed when it is written."""
    import onnx_ir

    value = onnx_ir.Value(
        name=name, shape=onnx_ir.Shape(shape), type=onnx_ir.TensorType(kind),
        const_value=lazy_tensor(name, kind, shape, lambda: np.ascontiguousarray(read()).astype(kind.numpy())),
    )
    graph.initializers.add(value)
    return value
