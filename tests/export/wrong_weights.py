"""Graphs with wrong weights, which a comparison has to find."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx


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
