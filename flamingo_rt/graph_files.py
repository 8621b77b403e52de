"""Graphs as ONNX Runtime and TensorRT load them: checked bytes, and the real folder of their one file of weights.

A bundle may come from a stranger. Its graphs may take weights only from ``<graph>.onnx.data``, which the manifest
names, and may hold no operators that load code. Libraries would follow any ``location`` (ONNX Runtime before 1.24), or
refuse harmless links such as those of the Hugging Face cache (since then). So links are resolved here, and the bytes
that were checked are the bytes that are loaded.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from flamingo_rt.errors import DataError
from flamingo_rt.protobuf import encoded_fields, field, fields

MOST_BYTES = 1 << 24  # without weights; far above any exported graph
MOST_NESTED = 100  # levels of nested messages, the limit of the libraries too
EXTERNAL = 1  # TensorProto.DataLocation
NUMBER = re.compile(rb"[0-9]{1,18}")

# Messages of onnx.proto that contain tensors, nodes or names, with the numbers of the fields that do.
MODEL, TRAINING, FUNCTION, GRAPH, NODE, ATTRIBUTE, SPARSE_TENSOR, TENSOR, ENTRY = range(9)
VALUE_INFO, TYPE, TENSOR_TYPE, SHAPE, DIMENSION = range(9, 14)
CHILDREN = {
    MODEL: {7: GRAPH, 20: TRAINING, 25: FUNCTION},
    TRAINING: {1: GRAPH, 2: GRAPH},
    FUNCTION: {7: NODE, 11: ATTRIBUTE},
    GRAPH: {1: NODE, 5: TENSOR, 11: VALUE_INFO, 12: VALUE_INFO, 13: VALUE_INFO, 15: SPARSE_TENSOR},
    NODE: {5: ATTRIBUTE},
    ATTRIBUTE: {5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH, 22: SPARSE_TENSOR, 23: SPARSE_TENSOR},
    SPARSE_TENSOR: {1: TENSOR, 2: TENSOR},
    TENSOR: {13: ENTRY},  # external_data
    ENTRY: {},
    VALUE_INFO: {},
    TYPE: {1: TENSOR_TYPE},
    TENSOR_TYPE: {2: SHAPE},
    SHAPE: {1: DIMENSION},
    DIMENSION: {},
}
# Fields with names, which ONNX Runtime may log to a terminal as they are: of nodes and their inputs and outputs, of
# graphs, functions, attributes, tensors and dimensions.
NAMES: dict[int, frozenset[int]] = {
    FUNCTION: frozenset((1, 4, 5)), GRAPH: frozenset((2,)), NODE: frozenset((1, 2, 3)), ATTRIBUTE: frozenset((1,)),
    TENSOR: frozenset((8,)), VALUE_INFO: frozenset((1,)), DIMENSION: frozenset((2,)),
}
NODE_OPERATOR, NODE_DOMAIN = 4, 7
VALUE_INFO_TYPE = 2
TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION = 13, 14
ENTRY_KEY, ENTRY_VALUE = 1, 2
LOCATION = b"location"

# ONNX's own operators only compute. ONNX Runtime's are limited to the exported ones: others load engines (EPContext),
# run Python (PythonOp) or need libraries of their own.
STANDARD_DOMAINS = (b"", b"ai.onnx")
CONTRIBUTED_DOMAIN = b"com.microsoft"
CONTRIBUTED = frozenset((b"GatherBlockQuantized", b"GroupQueryAttention", b"MatMulNBits", b"MultiHeadAttention"))
# A graph with a loop may never end. An encoder has none, nor branches.
CONTROL_FLOW = frozenset((b"If", b"Loop", b"Scan", b"SequenceMap"))


@dataclass(frozen=True)
class GraphFile:
    """A checked graph.

    ``model`` is its content; the file of its weights is in ``folder``, under the name that ``model`` gives.
    ``linked``: the graph or its weights are reached through a link, so ``path`` itself must not be loaded.
    """

    path: Path
    model: bytes
    folder: Path
    linked: bool

    @property
    def beside(self) -> str | bytes:
        """A path in ``folder``, for libraries that look for weights beside the graph's path."""
        return native(self.folder / self.path.name)


def native(path: Path) -> str | bytes:
    """A path for C++ libraries: text, or bytes where the file system's name is not UTF-8."""
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text)
    return text


def read_graph(path: Path, data: Path | None = None) -> GraphFile:
    """Read and check a ``.onnx`` file whose external weights, if any, are in ``data``, by default ``<path>.data``.

    Raises `DataError` when it cannot be read, takes weights from elsewhere, holds operators that are not exported, or
    names that a terminal would obey.
    """
    data = data or path.with_name(f"{path.name}.data")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        model = path.read_bytes()
        there = data.resolve() if data.exists() else None
        folder = (there or path.resolve()).parent
        _check(MODEL, memoryview(model), data.name.encode(), there.stat().st_size if there else 0)
        linked = path.is_symlink() or folder != path.parent.resolve()
        if there is not None and there.name != data.name:
            model, linked = _with_location(MODEL, memoryview(model), there.name.encode()), True
    except (OSError, ValueError) as error:  # a name that is not UTF-8 is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"cannot load {path}: {reason}; copy the bundle or export the model again") from error
    return GraphFile(path, model, folder, linked)


def check_graph(model: bytes, where: str) -> None:
    """Check an encoder's graph that has its weights inside. ``where`` names it in messages.

    Raises `DataError` for one that takes weights from elsewhere, for operators of `CONTROL_FLOW`, and what `read_graph`
    refuses besides.
    """
    try:
        _check(MODEL, memoryview(model), b"", 0, refused=CONTROL_FLOW)
    except ValueError as error:
        raise DataError(f"cannot take {where}: {error}") from error


def _check(
    kind: int, message: memoryview, data_name: bytes, data_size: int, depth: int = 0,
    refused: frozenset[bytes] = frozenset(),
) -> None:
    """Raise `ValueError` for weights outside the file ``data_name``, operators that are not exported or ``refused``,
    and names with control characters."""
    if depth > MOST_NESTED:
        raise ValueError(f"its graphs are nested more than {MOST_NESTED} deep")
    if kind == TENSOR:
        _check_tensor(message, data_name, data_size)
        return
    children, names, texts = CHILDREN[kind], NAMES.get(kind, frozenset()), {}
    for number, value in fields(message):
        if isinstance(value, int):
            continue
        if number in children:
            _check(children[number], value, data_name, data_size, depth + 1, refused)
        elif number in names:
            _check_name(bytes(value))
        elif kind == VALUE_INFO and number == VALUE_INFO_TYPE:
            _check_type(bytes(value))
        elif kind == NODE and number in (NODE_OPERATOR, NODE_DOMAIN):
            texts[number] = bytes(value)
    if kind == NODE:
        _check_operator(texts.get(NODE_DOMAIN, b""), texts.get(NODE_OPERATOR, b""), refused)


@lru_cache(maxsize=1024)  # hundreds of values have a few types among them
def _check_type(value_type: bytes) -> None:
    _check(TYPE, memoryview(value_type), b"", 0)


def _check_name(name: bytes) -> None:
    if not name.decode().isprintable():
        raise ValueError(f"it has the name {_shown(name)}, which holds characters that a terminal would obey")


def _check_operator(domain: bytes, operator: bytes, refused: frozenset[bytes]) -> None:
    if operator in refused:
        raise ValueError(f"it has the operator {_shown(operator)}, control flow that may never end: export the encoder "
                         "without it")
    if domain not in STANDARD_DOMAINS and not (domain == CONTRIBUTED_DOMAIN and operator in CONTRIBUTED):
        raise ValueError(f"it has the operator {_shown(operator)} of {_shown(domain)}, which is not exported")


def _check_tensor(tensor: memoryview, data_name: bytes, data_size: int) -> None:
    external, found = False, {}
    for number, value in fields(tensor):
        if number == TENSOR_DATA_LOCATION and isinstance(value, int):
            external = value & 0xFFFFFFFF == EXTERNAL
        elif number in NAMES[TENSOR] and not isinstance(value, int):
            _check_name(bytes(value))
        elif number == TENSOR_EXTERNAL_DATA and not isinstance(value, int):
            entry = {part: bytes(text) for part, text in fields(value) if not isinstance(text, int)}
            key = entry.get(ENTRY_KEY, b"")
            if key in found or key not in (LOCATION, b"offset", b"length", b"checksum"):
                raise ValueError(f"a tensor states {_shown(key)} of its external data: unknown, or stated twice")
            found[key] = entry.get(ENTRY_VALUE, b"")
    if not (external or found):
        return
    if found.get(LOCATION) != data_name:
        other = _shown(found.get(LOCATION, b""))
        raise ValueError(f"it takes weights from {other}, not from {_shown(data_name)} alone")
    offset, length = (found.get(key, b"0") for key in (b"offset", b"length"))
    if not NUMBER.fullmatch(offset) or not NUMBER.fullmatch(length) or int(offset) + int(length) > data_size:
        raise ValueError(
            f"it takes {_shown(length)} bytes at {_shown(offset)} of {_shown(data_name)}, which has {data_size}"
        )


def _with_location(kind: int, message: memoryview, location: bytes) -> bytes:
    """The message with every ``location`` of external data replaced and everything else byte for byte the same."""
    if kind == ENTRY:
        parts = dict(fields(message))
        return field(ENTRY_KEY, LOCATION) + field(ENTRY_VALUE, location) if parts.get(ENTRY_KEY) == LOCATION else (
            bytes(message)
        )
    children = CHILDREN[kind]
    return b"".join(
        field(number, _with_location(children[number], value, location))
        if number in children and not isinstance(value, int) else encoded
        for number, value, encoded in encoded_fields(message)
    )


def _shown(text: bytes) -> str:
    return repr(text.decode(errors="replace"))
