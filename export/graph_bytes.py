"""Bytes of weights that one run of a graph must read, from the written graph; the manifest states them.

An embedding, of which only rows are looked up, counts one row for each token; weights by distance between tokens
(relative positions) count as many distances as tokens are seen; everything else is read once, also where several
operators use it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flamingo_rt.bundle import WeightBytes
from flamingo_rt.contract import RELATIVE_KEYS

if TYPE_CHECKING:
    import onnx_ir

LOOKUPS = {"Gather": "axis", "GatherBlockQuantized": "gather_axis"}  # and the attribute that says along what; default 0
INDICES = 1  # the input that says which rows: it is read whole
VIEWS = ("Unsqueeze",)  # the same numbers in another shape, whose rows are still the first dimension's


def graph_weights(path: Path) -> WeightBytes:
    """Count the bytes of the weights of a ``.onnx`` file; their data is not read."""
    import onnx_ir

    stored = tables = each_run = distances = 0
    for name, value in onnx_ir.load(path).graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        size, dims = tensor.nbytes, tensor.shape.numpy()
        stored += size
        if f".{RELATIVE_KEYS}." in name:
            if f".{RELATIVE_KEYS}.0." in name:  # all spans of a layer have the same bytes for a distance
                distances += size // dims[-1]  # the distances come last
        elif len(dims) > 0 and dims[0] > 1 and set(_by_rows(value)) == {True}:
            tables += math.ceil(size / dims[0])
        else:
            each_run += size
    return WeightBytes(stored, each_run, tables, distances)


def _by_rows(value: onnx_ir.Value) -> Iterator[bool]:
    """Whether a use of a value, or of a view of it, looks up rows; for each use."""
    for node, index in value.uses():
        if node.op_type in VIEWS and index == 0:
            yield from _by_rows(node.outputs[0])
        else:
            axis = LOOKUPS.get(node.op_type)
            yield axis is not None and index != INDICES and node.attributes.get_int(axis, 0) == 0
