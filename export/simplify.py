"""Fewer operators, beyond what the exporter's optimizer removes.

A decode step runs hundreds of operators, most of them on a few thousand numbers; the fewer bytes the weights have, the
more it counts that each operator has to be started. So matrices with the same input are merged, chains of reshapes
shortened, and a constant factor after a matrix is folded into it.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np

from flamingo_rt.export.graph_weights import PARTS, lazy_tensor, parts_of

MERGED = ".merged"


def simplify(graph: Any, fold_factors: bool = True) -> None:
    """Simplify an onnx_ir graph in place. Weights stay unread: they are scaled and merged when they are written.
    ``fold_factors`` is False for weights stored in half precision, which a factor would round differently."""
    if fold_factors:
        _fold_factors(graph)
    _merge_parallel(graph)
    _join_reshapes(graph)


def _read_once(value: Any) -> bool:
    """Whether the value has one reader, an operator of the graph."""
    return len(list(value.uses())) == 1 and not value.is_graph_output()


def _weight(node: Any) -> Any:
    """Matrix [in, out] of a MatMul, if it is a weight that nothing else reads; else None."""
    if node is None or node.op_type != "MatMul":
        return None
    value = node.inputs[1]
    own = value.is_initializer() and len(value.shape) == 2 and _read_once(value)
    return value if own else None


def _fold_factors(graph: Any) -> None:
    """Rewrite factor * (x @ W) and factor * (x @ W * y) with factor * W as the weight: the gates of cross-attention."""
    for node in list(graph):
        if node.op_type != "Mul" or node.outputs[0].is_graph_output():  # an output keeps its name
            continue
        factors = [value for value in node.inputs if _is_number(value)]
        product = next((value for value in node.inputs if value not in factors), None)
        if len(factors) != 1 or product is None or not _read_once(product):
            continue
        source = product.producer()
        if source is not None and source.op_type == "Mul":
            source = next(
                (value.producer() for value in source.inputs if _weight(value.producer()) is not None
                 and _read_once(value)), None
            )
        weight = _weight(source)
        if weight is None:
            continue
        factor, tensor = float(factors[0].const_value.numpy().item()), weight.const_value
        weight.meta[PARTS] = [(name, before * factor) for name, before in parts_of(weight)]
        weight.const_value = lazy_tensor(weight.name, tensor.dtype, tensor.shape, partial(_scaled, tensor, factor))
        node.outputs[0].replace_all_uses_with(product)
        graph.remove(node, safe=True)


def _is_number(value: Any) -> bool:
    """Whether a value is a scalar constant."""
    return value is not None and value.const_value is not None and value.const_value.size == 1


def _merge_parallel(graph: Any) -> None:
    """Merge weights with the same input into one matrix, whose product is split: queries, keys and values; the two of a
    gated activation; keys and values of all cross-attention layers."""
    readers = defaultdict(list)
    for node in graph:
        if _weight(node) is not None and not node.outputs[0].is_graph_output():  # an output keeps its name
            readers[node.inputs[0]].append(node)
    for nodes in readers.values():
        if len(nodes) > 1:
            _merge(graph, nodes)


def _merge(graph: Any, nodes: list[Any]) -> None:
    """Replace the MatMuls ``nodes`` by one and a Split."""
    import onnx_ir

    weights = [node.inputs[1] for node in nodes]
    tensors, widths = [weight.const_value for weight in weights], [int(weight.shape[1]) for weight in weights]
    name, shape = f"{weights[0].name}{MERGED}", (int(weights[0].shape[0]), sum(widths))
    merged = onnx_ir.Value(
        name=name, shape=onnx_ir.Shape(shape), type=weights[0].type,
        const_value=lazy_tensor(
            name, tensors[0].dtype, shape, lambda: np.concatenate([t.numpy() for t in tensors], axis=1)
        ),
    )
    merged.meta[PARTS] = [part for weight in weights for part in parts_of(weight)]
    product = onnx_ir.node("MatMul", [nodes[0].inputs[0], merged])
    whole = product.outputs[0]
    whole.name, whole.type = f"{name}.product", nodes[0].outputs[0].type
    whole.shape = onnx_ir.Shape((*nodes[0].outputs[0].shape[:-1], shape[1]))
    if len(set(widths)) == 1:
        split = onnx_ir.node("Split", [whole], {"axis": -1, "num_outputs": len(widths)}, num_outputs=len(widths))
    else:
        sizes = onnx_ir.Value(
            name=f"{name}.widths", shape=onnx_ir.Shape((len(widths),)),
            type=onnx_ir.TensorType(onnx_ir.DataType.INT64),
            const_value=onnx_ir.tensor(np.array(widths, dtype=np.int64), name=f"{name}.widths"),
        )
        graph.initializers.add(sizes)
        split = onnx_ir.node("Split", [whole, sizes], {"axis": -1}, num_outputs=len(widths))
    graph.insert_before(nodes[0], [product, split])
    graph.initializers.add(merged)
    for node, weight, part in zip(nodes, weights, split.outputs, strict=True):
        old = node.outputs[0]
        part.name, part.shape, part.type = f"{old.name}.part", old.shape, old.type
        old.replace_all_uses_with(part)
        graph.remove(node, safe=True)
        graph.initializers.pop(weight.name)


def _join_reshapes(graph: Any) -> None:
    """Skip reshapes before another one, and remove those that keep the shape."""
    for node in list(graph):
        if node.op_type != "Reshape":
            continue
        before = node.inputs[0].producer()
        if before is not None and before.op_type == "Reshape" and not _copies_dimensions(node):
            node.replace_input_with(0, before.inputs[0])
        source, result = node.inputs[0], node.outputs[0]
        if _same_shape(source, result) and not result.is_graph_output():
            result.replace_all_uses_with(source)
            graph.remove(node, safe=True)
    _remove_unused(graph)


def _copies_dimensions(reshape: Any) -> bool:
    """Whether the target shape may hold a 0, which copies a dimension of the input."""
    target = reshape.inputs[1].const_value
    return target is not None and 0 in target.numpy()


def _same_shape(first: Any, second: Any) -> bool:
    """Whether two values have the same dimensions, all of them known or named."""
    if first.shape is None or second.shape is None or len(first.shape) != len(second.shape):
        return False
    pairs = zip(first.shape, second.shape, strict=True)
    return all(_dimension(a) is not None and _dimension(a) == _dimension(b) for a, b in pairs)


def _dimension(size: Any) -> int | str | None:
    return size if isinstance(size, int) else size.value


def _remove_unused(graph: Any) -> None:
    for node in reversed(list(graph)):
        if not any(output.is_graph_output() or list(output.uses()) for output in node.outputs):
            graph.remove(node, safe=True)


def _scaled(tensor: Any, factor: float) -> np.ndarray:
    """The numbers of an onnx_ir tensor times ``factor``."""
    return tensor.numpy() * np.float32(factor)
