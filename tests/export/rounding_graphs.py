"""Graphs of half precision as a device computes them: on the CPU, every operator's result is rounded to their type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir

from flamingo_rt.bundle import Bundle
from flamingo_rt.contract import GRAPHS
from flamingo_rt.engines.ort import OrtBackend
from flamingo_rt.export.checks.upcast import upcast
from flamingo_rt.graph_files import GraphFile, read_graph

HALF = (onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)


def rounding_backend(bundle: Bundle, rounding: bool = True) -> OrtBackend:
    """The graphs of a bundle that computes in half precision, on one thread; their twins are written beside them.
    Without ``rounding`` they compute in float32 throughout, as when the reference outputs were recorded."""
    graphs = {name: _write_twin(bundle.graph_path(name), rounding) for name in GRAPHS}
    return OrtBackend(graphs, bundle.config, threads=1, frugal=True, cache=bundle.cache_form)


def _write_twin(path: Path, rounding: bool) -> GraphFile:
    model = onnx_ir.load(path)
    results = [(value, value.dtype) for node in model.graph for value in node.outputs if value.dtype in HALF]
    upcast(model.graph)
    for value, kind in results if rounding else ():
        _round(model.graph, value, kind)
    twin = path.with_suffix(".rounding.onnx")
    onnx_ir.save(model, twin)
    return read_graph(twin, path.with_name(f"{path.name}.data"))


def _round(graph: Any, value: Any, kind: Any) -> None:
    """Let everything that reads ``value``, float32, read it rounded to ``kind``."""
    users, name = list(value.uses()), value.name
    down = onnx_ir.node("Cast", [value], {"to": kind})
    up = onnx_ir.node("Cast", down.outputs, {"to": onnx_ir.DataType.FLOAT})
    graph.insert_after(value.producer(), [down, up])
    rounded = up.outputs[0]
    rounded.shape, rounded.type = value.shape, value.type
    for user, index in users:
        user.replace_input_with(index, rounded)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = rounded
    value.name, rounded.name = f"{name}.unrounded", name
