"""From a wrapper module to an ONNX file with external weights, named as the contract says."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import GRAPHS, LANGUAGE_MODEL, RESAMPLER, VISION_ENCODER, GraphSpec, graph_specs
from flamingo_rt.errors import UsageError
from flamingo_rt.export import ort
from flamingo_rt.export.wrappers import LanguageModelGraph, ResamplerGraph, VisionEncoder
from flamingo_rt.model.flamingo import Flamingo

LOWERINGS = {ort.NAME: (ort.GroupQueryAttend, ort.OPSET)}

# Sizes of the example inputs: all different, and none of them 1, or the exporter takes two for one or one as fixed.
EXAMPLE_SIZES = {"N": 6, "M": 2, "F": 3, "B": 2, "V": 3, "T": 5, "K": 4, "C": 16}


def export_graphs(
    model: Flamingo, folder: Path, lowering: str = ort.NAME, on_graph: Callable[[str], None] = lambda name: None
) -> dict[str, Path]:
    """Write ``<graph>.onnx`` and ``<graph>.onnx.data`` for the three graphs; returns the paths by name.

    Raises `UsageError` for an unknown lowering.
    """
    if lowering not in LOWERINGS:
        raise UsageError(f"unknown lowering {lowering!r}; known: {', '.join(LOWERINGS)}")
    attend, opset = LOWERINGS[lowering]
    specs = graph_specs(model.config)
    modules: dict[str, Callable[[], nn.Module]] = {
        VISION_ENCODER: lambda: VisionEncoder(model),
        RESAMPLER: lambda: ResamplerGraph(model),
        LANGUAGE_MODEL: lambda: LanguageModelGraph(model, attend),
    }
    paths = {}
    for name in GRAPHS:
        on_graph(name)
        paths[name] = folder / f"{name}.onnx"
        _export(modules[name]().eval(), specs[name], model.config, opset, paths[name])
    return paths


def _export(module: nn.Module, spec: GraphSpec, config: FlamingoConfig, opset: int, path: Path) -> None:
    tensors, dynamic = {}, {}
    for tensor in spec.inputs:
        shape = tensor.resolve(EXAMPLE_SIZES)
        tensors[tensor.name] = torch.zeros(shape, dtype=getattr(torch, tensor.dtype))
        dynamic[tensor.name] = {axis: Dim.DYNAMIC for axis, size in enumerate(tensor.shape) if isinstance(size, str)}
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module,
            _arguments(spec, config, tensors),
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=_arguments(spec, config, dynamic),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
        _tidy(program.model, spec)
        program.save(path, external_data=True)


def _arguments(spec: GraphSpec, config: FlamingoConfig, by_name: dict[str, Any]) -> tuple[Any, ...]:
    """One value per argument of the wrapper: the language model takes its media and its past as lists."""
    values = [by_name[tensor.name] for tensor in spec.inputs]
    if spec.name != LANGUAGE_MODEL:
        return tuple(values)
    media = 2 * len(config.cross_layers)
    return (*values[:4], values[4 : 4 + media], values[4 + media :])


def _tidy(model: Any, spec: GraphSpec) -> None:
    """Give the free dimensions the contract's letters; drop the exporter's stack traces, which name local files."""
    import onnx_ir

    for values, tensors in ((model.graph.inputs, spec.inputs), (model.graph.outputs, spec.outputs)):
        for value, tensor in zip(values, tensors, strict=True):
            value.shape = onnx_ir.Shape(tensor.shape)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for output in node.outputs:
            output.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


@contextlib.contextmanager
def _quiet() -> Any:
    """The exporter's progress, warnings and log lines are about its own internals: keep them from the user."""
    loggers: Sequence[logging.Logger] = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
