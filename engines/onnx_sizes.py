"""Fixing a free dimension of an ONNX file's inputs and outputs, without the ``onnx`` package."""

from __future__ import annotations

from collections.abc import Mapping

from flamingo_rt.protobuf import field, fields

# Where onnx.proto keeps dimensions: ModelProto.graph, GraphProto.input, output and value_info, ValueInfoProto.type,
# TypeProto.tensor_type, Tensor.shape, TensorShapeProto.dim.
GRAPH, VALUES, DIMENSION = 7, (11, 12, 13), (2, 1, 2, 1)
DIM_VALUE, DIM_PARAM = 1, 2


def with_sizes(model: bytes, sizes: Mapping[str, int]) -> bytes:
    """The ``.onnx`` file with the free dimensions named in ``sizes`` fixed at those; weights beside it stay where they
    are. Raises `ValueError` when the bytes are no ONNX file."""
    replaced = {name.encode(): field(DIM_VALUE, size) for name, size in sizes.items()}
    return _rewritten(memoryview(model), ((GRAPH,), VALUES, *((number,) for number in DIMENSION)), replaced)


def _rewritten(data: memoryview, path: tuple[tuple[int, ...], ...], replaced: Mapping[bytes, bytes]) -> bytes:
    """A message with the dimensions at ``path``, field numbers one inside the other, replaced."""
    parts = []
    for number, value in fields(data):
        content = value if isinstance(value, int) else bytes(value)
        if not path:
            parts.append(replaced.get(content, b"") if number == DIM_PARAM else b"")
            parts[-1] = parts[-1] or field(number, content)
        elif number in path[0] and not isinstance(value, int):
            parts.append(field(number, _rewritten(value, path[1:], replaced)))
        else:
            parts.append(field(number, content))
    return b"".join(parts)
