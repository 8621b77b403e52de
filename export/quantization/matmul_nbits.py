"""Quantized weights for ONNX Runtime: MatMulNBits, integer matrix products and 8-bit tables.

The language model and its cross-attention are multiplied in packed blocks of 8 or 4 bits (`packed_matrices`). The
embedding is in such blocks too, and stored once where the head is tied to it. The vision encoder and the resampler work
on hundreds of rows at a time, where integer products gain most: their matrices have 8-bit columns, and activations are
rounded to 8 bits row by row. Convolutions are stored in 8 bits and computed in float32.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from flamingo_rt.contract import LANGUAGE_MODEL
from flamingo_rt.export.graph_weights import SharedResult, add_initializer, parts_of
from flamingo_rt.export.quantization.packed_matrices import QuantizedMatrix, round_to_nearest, stacked
from flamingo_rt.export.quantization.quantization_options import Blocks, Scheme

DOMAIN = "com.microsoft"
ACCURACY_LEVEL = 4  # of MatMulNBits: activations in 8 bits, by blocks
SMALLEST_MATRIX = 1024  # numbers; smaller matrices stay in float
ROW_STEP = np.float32(1 / 127)  # between 8-bit activations, whose rows are scaled to -1 to 1


def quantize_graph(
    name: str, graph: Any, scheme: Scheme, rounded: Mapping[str, QuantizedMatrix] | None = None
) -> dict[str, set[int]]:
    """Quantize the weights of an onnx_ir graph in place. They are read and rounded when the graph is written: to the
    nearest, unless ``rounded`` has them by the name of their tensor. Returns the block sizes used, by kind of matrix
    (`Scheme.kind_of`)."""
    fitted: dict[str, set[int]] = defaultdict(set)
    if name == LANGUAGE_MODEL:
        fitted["head"] |= _quantize_tables(graph, scheme)
    for node in list(graph):
        weight = node.inputs[1] if node.op_type in ("MatMul", "Conv", "Gemm") else None
        if weight is None or not weight.is_initializer() or math.prod(weight.shape) < SMALLEST_MATRIX:
            continue
        if node.op_type == "MatMul" and len(weight.shape) > 2:
            continue  # relative keys, one matrix per head: no operator multiplies a batch of block matrices
        if node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0)):
            _store_in_bytes(graph, node, weight)
        elif node.op_type == "Gemm":
            continue  # the exporter writes every Gemm of the model with transB
        elif name != LANGUAGE_MODEL:
            _multiply_integers(graph, node, weight)
        elif blocks := scheme.blocks_of(weight.name, int(weight.shape[0])):
            _multiply_blocks(graph, node, weight, blocks, rounded or {})
            fitted[scheme.kind_of(weight.name)].add(blocks.block)
    return fitted


def _multiply_blocks(
    graph: Any, node: Any, weight: Any, blocks: Blocks, rounded: Mapping[str, QuantizedMatrix]
) -> None:
    """Rewrite x @ W as MatMulNBits(x, blocks of W transposed)."""
    width, rows = (int(size) for size in weight.shape)
    compute = partial(block_matrix, weight.const_value, parts_of(weight), blocks, rounded)
    packed, scales = _add_blocks(graph, weight.name, (rows, width), blocks, compute)
    _replace(graph, node, [_matmul_blocks(node.inputs[0], packed, scales, (rows, width), blocks)])
    if not list(weight.uses()):
        graph.initializers.pop(weight.name)


def block_matrix(
    dense: Any, parts: list[tuple[str, float]], blocks: Blocks, rounded: Mapping[str, QuantizedMatrix]
) -> QuantizedMatrix:
    """Blocks of a weight [in, out] that holds the tensors ``parts`` side by side: taken from ``rounded`` when all of
    them are there, else rounded to the nearest."""
    if all(name in rounded for name, _ in parts):
        return stacked([rounded[name].scaled(factor) for name, factor in parts])
    return round_to_nearest(dense.numpy().astype(np.float32).T, blocks)


def _quantize_tables(graph: Any, scheme: Scheme) -> set[int]:
    """Let the embedding's Gather and, where the head is tied to it, the head's MatMul read the same blocks. Returns
    their block sizes."""
    import onnx_ir

    fitted: set[int] = set()
    for node in list(graph):
        table = node.inputs[0] if node.op_type == "Gather" else None
        if table is None or not table.is_initializer() or "language.embedding." not in table.name:
            continue
        rows, width = (int(size) for size in table.shape)
        blocks = scheme.blocks_of(table.name, width)
        if blocks is None:
            continue
        fitted.add(blocks.block)
        dense = table.const_value
        packed, scales = _add_blocks(
            graph, table.name, (rows, width), blocks,
            partial(_rounded, dense, blocks),
        )
        for user, _ in list(table.uses()):
            if user.op_type == "Transpose":
                for head, _ in list(user.outputs[0].uses()):
                    _replace(graph, head, [_matmul_blocks(head.inputs[0], packed, scales, (rows, width), blocks)])
                graph.remove(user, safe=True)
        # In MatMulNBits' layout by blocks: reshaped to rows, the table would be in memory a second time.
        each = _constant(graph, "each", np.array([-1], dtype=np.int64))
        by_block = onnx_ir.node("Unsqueeze", [scales, each])
        gather = onnx_ir.node(
            "GatherBlockQuantized", [packed, node.inputs[1], by_block.outputs[0]],
            {"gather_axis": 0, "quantize_axis": 2, "block_size": blocks.block, "bits": blocks.bits}, domain=DOMAIN,
        )
        whole = _constant(graph, "whole_rows", np.array([0, 0, width], dtype=np.int64))
        _replace(graph, node, [by_block, gather, onnx_ir.node("Reshape", [gather.outputs[0], whole])])
        graph.initializers.pop(table.name)
    return fitted


def _matmul_blocks(x: Any, packed: Any, scales: Any, shape: tuple[int, int], blocks: Blocks) -> Any:
    import onnx_ir

    return onnx_ir.node(
        "MatMulNBits", [x, packed, scales],
        {"K": shape[1], "N": shape[0], "bits": blocks.bits, "block_size": blocks.block,
         "accuracy_level": ACCURACY_LEVEL}, domain=DOMAIN,
    )


def _add_blocks(
    graph: Any, name: str, shape: tuple[int, int], blocks: Blocks, compute: Callable[[], QuantizedMatrix]
) -> tuple[Any, Any]:
    """Add initializers for the blocks of a matrix [rows, width]: packed numbers and scales."""
    matrix = SharedResult(compute)
    packed_shape, scales_shape = blocks.shapes(*shape)
    return (
        _initializer(graph, f"{name}.packed", packed_shape, np.uint8, lambda: matrix().packed),
        _initializer(graph, f"{name}.scales", scales_shape, np.float32, lambda: matrix(last=True).scales),
    )


def _multiply_integers(graph: Any, node: Any, weight: Any) -> None:
    """Rewrite x @ W as an integer product times the scales of rows and columns.

    Activations are scaled row by row, so that a row with large numbers costs the others no precision, and a picture's
    keys and values do not depend on the pictures encoded with it.

    The integer product is exact with VNNI; ONNX Runtime's x86 kernels without it saturate sums of pairs of products.
    """
    import onnx_ir

    width, outputs = (int(size) for size in weight.shape)
    dense, x = weight.const_value, node.inputs[0]
    columns = SharedResult(lambda: _columns(dense.numpy()))
    integers = _initializer(graph, f"{weight.name}.integers", (width, outputs), np.int8, lambda: columns()[0])
    scales = _initializer(
        graph, f"{weight.name}.scales", (outputs,), np.float32, lambda: columns(last=True)[1] * ROW_STEP
    )
    nodes: list[Any] = []

    def add(op: str, inputs: list[Any], attributes: dict[str, int] | None = None) -> Any:
        nodes.append(onnx_ir.node(op, inputs, attributes or {}))
        return nodes[-1].outputs[0]

    axis = _constant(graph, "last_axis", np.array([-1], dtype=np.int64))
    tiny = _constant(graph, "tiny", np.array(1e-30, dtype=np.float32))
    step = _constant(graph, "row_step", np.array(ROW_STEP, dtype=np.float32))
    zero = _constant(graph, "row_zero", np.array(128, dtype=np.uint8))
    below = add("Neg", [add("ReduceMin", [x, axis], {"keepdims": 1})])
    largest = add("Max", [add("ReduceMax", [x, axis], {"keepdims": 1}), below, tiny])
    rows = add("QuantizeLinear", [add("Div", [x, largest]), step, zero])
    product = add("Cast", [add("MatMulInteger", [rows, integers, zero])], {"to": onnx_ir.DataType.FLOAT})
    add("Mul", [add("Mul", [product, scales]), largest])
    _replace(graph, node, nodes)
    if not list(weight.uses()):
        graph.initializers.pop(weight.name)


def _store_in_bytes(graph: Any, node: Any, weight: Any) -> None:
    """Store the weight [out, ...] of a convolution or a Gemm in 8 bits with a scale per output channel; the operator
    still computes in float32."""
    import onnx_ir

    shape, dense = tuple(int(size) for size in weight.shape), weight.const_value
    columns = SharedResult(lambda: _columns(dense.numpy().reshape(shape[0], -1).T))
    integers = _initializer(graph, f"{weight.name}.integers", shape, np.int8, lambda: columns()[0].T.reshape(shape))
    scales = _initializer(graph, f"{weight.name}.scales", shape[:1], np.float32, lambda: columns(last=True)[1])
    dequantize = onnx_ir.node("DequantizeLinear", [integers, scales], {"axis": 0})
    dequantize.outputs[0].shape, dequantize.outputs[0].type = weight.shape, weight.type
    graph.insert_before(node, dequantize)
    node.replace_input_with(1, dequantize.outputs[0])
    if not list(weight.uses()):
        graph.initializers.pop(weight.name)


def _columns(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round a matrix to int8 with a scale per column [width], which its largest number sets."""
    scales = np.maximum(np.abs(matrix).max(axis=0), 1e-30) / np.float32(127)
    return np.rint(matrix / scales).astype(np.int8), scales.astype(np.float32)


def _replace(graph: Any, node: Any, new: list[Any]) -> None:
    """Put the nodes ``new`` in the place of ``node``; the last one's output takes over its users and its name."""
    old, result = node.outputs[0], new[-1].outputs[0]
    result.shape, result.type = old.shape, old.type
    graph.insert_before(node, new)
    name = old.name
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    old.name, result.name = f"{name}.dense", name


def _initializer(graph: Any, name: str, shape: tuple[int, ...], dtype: type, read: Callable[[], np.ndarray]) -> Any:
    import onnx_ir

    return add_initializer(graph, name, onnx_ir.DataType.from_numpy(np.dtype(dtype)), shape, read)


def _constant(graph: Any, name: str, array: np.ndarray) -> Any:
    """Add an initializer, or find the one of that name: constants are shared by all rewritten products."""
    if name in graph.initializers:
        return graph.initializers[name]
    return _initializer(graph, name, array.shape, array.dtype.type, lambda: array)


def _rounded(dense: Any, blocks: Blocks) -> QuantizedMatrix:
    """Round the numbers of an onnx_ir tensor to the nearest of ``blocks``."""
    return round_to_nearest(dense.numpy(), blocks)
