"""Graphs with wrong weights, which a comparison has to find."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx

# Types of numpy by the names of ONNX; two numbers of 4 bits are a byte.
STORED = {"INT4": np.uint8, "INT8": np.int8, "FLOAT16": np.float16, "BFLOAT16": ml_dtypes.bfloat16}


def stored_floats(graph: Path) -> dict[str, tuple[int, int]]:
    """Place and size in bytes of every float32 tensor in the file beside a graph."""
    found = {}
    for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.data_type == onnx.TensorProto.FLOAT and place:
            found[tensor.name] = (int(place["offset"]), int(place["length"]))
    return found


def spoil(graph: Path, name: str | None = None) -> None:
    """Multiply every number of one tensor of a graph on disk by another factor: of its last tensor unless named."""
    tensors = stored_floats(graph)
    offset, length = tensors[name or list(tensors)[-1]]
    file = graph.with_name(f"{graph.name}.data")
    content = bytearray(file.read_bytes())
    values = np.frombuffer(content, np.float32, length // 4, offset)
    values *= np.random.default_rng(0).uniform(0.5, 1.5, len(values)).astype(np.float32)
    file.write_bytes(content)


def change(graph: Path, name: str, edit: Callable[[np.ndarray], None]) -> None:
    """Let ``edit`` change one tensor of a graph on disk in place. It gets the stored numbers, with those of int4 as
    [rows, bytes]."""
    model = onnx.load(graph, load_external_data=False)
    (tensor,) = (each for each in model.graph.initializer if each.name == name)
    place = {entry.key: entry.value for entry in tensor.external_data}
    kind = np.dtype(STORED[onnx.TensorProto.DataType.Name(tensor.data_type)])
    file = graph.with_name(f"{graph.name}.data")
    content = bytearray(file.read_bytes() if place else tensor.raw_data)  # small tensors are in the graph itself
    length = int(place["length"]) if place else len(content)
    values = np.frombuffer(content, kind, length // kind.itemsize, int(place.get("offset", 0)))
    edit(values.reshape(tensor.dims[0], -1) if len(tensor.dims) > 1 else values)
    if place:
        file.write_bytes(content)
    else:
        tensor.raw_data = bytes(content)
        onnx.save(model, graph)
