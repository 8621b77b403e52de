"""Graphs with wrong weights: what a comparison has to see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx


def stored_floats(graph: Path) -> dict[str, tuple[int, int, int]]:
    """Place, rows and size in bytes of every float32 tensor in the file beside a graph."""
    found = {}
    for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.data_type == onnx.TensorProto.FLOAT and place:
            found[tensor.name] = (int(place["offset"]), tensor.dims[0], int(place["length"]))
    return found


def spoil(graph: Path, name: str | None = None, row: int = 0) -> None:
    """Add half to the first number in a row of one tensor of a graph on disk: the last Linear's, unless named."""
    tensors = stored_floats(graph)
    offset, rows, length = tensors[name or [each for each in tensors if each.endswith(".transposed")][-1]]
    file = graph.with_name(f"{graph.name}.data")
    content = bytearray(file.read_bytes())
    np.frombuffer(content, np.float32, 1, offset + row * (length // rows))[0] += 0.5
    file.write_bytes(content)
