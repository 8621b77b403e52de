"""Bytes of weights that one run of a graph must read, from the graph itself.

A table that is only looked up in, an embedding, contributes the rows of the tokens; what is held for every distance
between tokens (relative positions), as many distances as tokens are seen; everything else is read once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from flamingo_rt.contract import RELATIVE_KEYS
from flamingo_rt.errors import DataError
from flamingo_rt.protobuf import fields, integers

LOOKUPS = ("Gather", "GatherBlockQuantized")
VIEWS = ("Unsqueeze",)  # the same numbers in another shape, whose rows are still the first dimension's
# ModelProto, GraphProto, NodeProto, TensorProto and StringStringEntryProto of onnx.proto.
GRAPH, NODE, INITIALIZER = 7, 1, 5
NODE_INPUT, NODE_OUTPUT, NODE_TYPE = 1, 2, 4
DIMS, TENSOR_NAME, RAW_DATA, EXTERNAL = 1, 8, 9, 13
KEY, VALUE = 1, 2


@dataclass(frozen=True)
class WeightBytes:
    """``stored``: all weights. ``each_run``: what every run reads. ``each_token``: rows of tables, for each token.
    ``each_distance``: what is held for a distance, for each token that is seen."""

    stored: int
    each_run: int
    each_token: int
    each_distance: int = 0

    def read(self, tokens: int, seen: float = 0) -> int:
        """Bytes that a run over ``tokens`` tokens reads, where the last one of the longest row sees ``seen`` tokens."""
        return self.each_run + tokens * self.each_token + round(seen * self.each_distance)


def graph_weights(path: Path) -> WeightBytes:
    """Read a ``.onnx`` file, not its data. Raises `DataError` when it is none."""
    try:
        model = memoryview(path.read_bytes())
        graph = next(value for number, value in fields(model) if number == GRAPH and not isinstance(value, int))
        return _weights(graph)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, StopIteration) as error:
        raise DataError(f"{path} is not an ONNX file ({error}): export the model again") from error


def _weights(graph: memoryview) -> WeightBytes:
    uses: dict[str, set[bool]] = defaultdict(set)  # initializer -> whether its uses are lookups
    views: dict[str, str] = {}  # a view's name -> what it is of
    sizes: dict[str, tuple[int, int]] = {}  # initializer -> bytes, rows
    spans: dict[str, int] = {}  # initializer -> bytes for each of its distances
    for number, value in fields(graph):
        if number == NODE:
            kind, inputs, outputs = _node(value)
            if kind in VIEWS:
                views[outputs[0]] = views.get(inputs[0], inputs[0])
                continue
            for name in inputs:
                uses[views.get(name, name)].add(kind in LOOKUPS)
        elif number == INITIALIZER:
            name, size, dims = _tensor(value)
            sizes[name] = size, dims[0] if dims else 1
            if f".{RELATIVE_KEYS}." in name:
                spans[name] = size // dims[-1]  # the distances come last
    tables = {name for name in sizes if uses[name] == {True} and sizes[name][1] > 1}
    firsts = [name for name in spans if f".{RELATIVE_KEYS}.0." in name]  # of a layer's spans, all with the same bytes
    return WeightBytes(
        stored=sum(size for size, _ in sizes.values()),
        each_run=sum(size for name, (size, _) in sizes.items() if name not in tables and name not in spans),
        each_token=sum(math.ceil(sizes[name][0] / sizes[name][1]) for name in tables),
        each_distance=sum(spans[name] for name in firsts),
    )


def _node(data: memoryview) -> tuple[str, list[str], list[str]]:
    """Operator, names of the inputs and of the outputs of a node."""
    kind, inputs, outputs = "", [], []
    for number, value in fields(data):
        if number == NODE_TYPE:
            kind = bytes(value).decode()
        elif number == NODE_INPUT:
            inputs.append(bytes(value).decode())
        elif number == NODE_OUTPUT:
            outputs.append(bytes(value).decode())
    return kind, inputs, outputs


def _tensor(data: memoryview) -> tuple[str, int, list[int]]:
    """Name, bytes and dimensions of an initializer; numbers kept as such in the graph are few and count as nothing."""
    name, size, dims = "", 0, []
    for number, value in fields(data):
        if number == DIMS:
            dims += integers(value)
        elif number == TENSOR_NAME:
            name = bytes(value).decode()
        elif number == RAW_DATA:
            size = len(value)
        elif number == EXTERNAL:
            entry = {part: bytes(content).decode() for part, content in fields(value)}
            if entry.get(KEY) == "length":
                size = int(entry[VALUE])
    return name, size, dims
