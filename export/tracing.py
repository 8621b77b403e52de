"""Tracing the model into three ONNX graphs with the contract's names, without any weights in memory.

The model is built of fake tensors, which have shapes and no values, so that matrices of any size take the same time and
no memory. Weights are known by name alone, and bound by `graph_weights`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import CACHE_FORMS, GRAPHS, LANGUAGE_MODEL, RESAMPLER, VISION_ENCODER, GraphSpec, graph_specs
from flamingo_rt.errors import UsageError
from flamingo_rt.export.external_graph import is_external
from flamingo_rt.export.folding import fold_standardisation
from flamingo_rt.export.graph_modules import LanguageModelGraph, ResamplerGraph, VisionEncoder
from flamingo_rt.export.lowerings import classic_lowering, ort_lowering, tensorrt_lowering
from flamingo_rt.export.lowerings.lowering import Lowering
from flamingo_rt.export.relative_positions import precompute_relative_bias
from flamingo_rt.export.simplify import simplify
from flamingo_rt.exporter_noise import without_exporter_noise
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.model.layers import Attention

LOWERINGS = {module.NAME: module.LOWERING for module in (ort_lowering, tensorrt_lowering, classic_lowering)}

# Sizes of the example inputs: all different, or the exporter takes two for one symbol; none 1, which it takes as fixed.
EXAMPLE_SIZES = {"N": 6, "M": 2, "F": 3, "B": 2, "S": 7, "T": 5, "K": 4, "C": 16}

# Gets a traced graph (an onnx_ir model) before the optimizer does, and gives its weights their values.
GraphPass = Callable[[Any], None]


def check_lowering(lowering: str, dtype: str = "float32") -> None:
    """Raise `UsageError` for an unknown lowering, or one whose graphs cannot compute in ``dtype``."""
    if lowering not in LOWERINGS:
        raise UsageError(f"unknown lowering {lowering!r}; known: {', '.join(LOWERINGS)}")
    if dtype not in LOWERINGS[lowering].computes:
        known = ", ".join(LOWERINGS[lowering].computes)
        raise UsageError(f"graphs of {lowering} cannot compute in {dtype}; known: {known}")


def trace_graphs(
    config: FlamingoConfig, lowering: str, bind: GraphPass, fold_factors: bool = True, dtype: str = "float32"
) -> Iterator[tuple[str, Any]]:
    """Yield the name and the onnx_ir model of each graph, computing in ``dtype``; None for an external encoder, which
    is a graph already. ``bind`` gives the initializers their values; see `simplify` for ``fold_factors``.

    Raises `UsageError` for an unknown lowering, or one whose graphs cannot compute in ``dtype``.
    """
    check_lowering(lowering, dtype)
    form, compute = LOWERINGS[lowering], getattr(torch, dtype)
    specs = graph_specs(config, dtype, CACHE_FORMS[lowering])
    fake = FakeTensorMode()
    with fake, _default_dtype(compute):
        model = Flamingo(config).eval()
        precompute_relative_bias(model.language, form.relative_bias)
        fold_standardisation(model.vision)
        _lower_attention(model, form)
    modules: dict[str, Callable[[], nn.Module]] = {
        VISION_ENCODER: lambda: VisionEncoder(model, compute),
        RESAMPLER: lambda: ResamplerGraph(model),
        LANGUAGE_MODEL: lambda: LanguageModelGraph(model, form),
    }
    for name in GRAPHS:
        if name == VISION_ENCODER and is_external(config):
            yield name, None
            continue
        yield name, _trace(modules[name]().eval(), specs[name], config, form, fake, bind, fold_factors)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make modules in this type: those of fake tensors cannot be converted later."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _lower_attention(model: nn.Module, lowering: Lowering) -> None:
    """Replace every `Attention` module, which has no cache, by the lowering's."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Attention):
                setattr(parent, name, lowering.attention(child))


def _trace(
    module: nn.Module, spec: GraphSpec, config: FlamingoConfig, lowering: Lowering, fake: FakeTensorMode,
    bind: GraphPass, fold_factors: bool,
) -> Any:
    program = _exported(module, spec, config, lowering, fake)
    with without_exporter_noise():
        bind(program.model)
        program.optimize()
        simplify(program.model.graph, fold_factors)
        lowering.finish(program.model)
    _tidy(program.model, spec)
    return program.model


def _exported(
    module: nn.Module, spec: GraphSpec, config: FlamingoConfig, lowering: Lowering, fake: FakeTensorMode
) -> torch.onnx.ONNXProgram:
    """Run PyTorch's exporter, which takes nearly all of the time. No weight has a value yet, so the result is the same
    for all models of a configuration."""
    tensors, dynamic = {}, {}
    with fake:
        for tensor in spec.inputs:
            shape = tensor.resolve(EXAMPLE_SIZES)
            tensors[tensor.name] = torch.zeros(shape, dtype=getattr(torch, tensor.dtype))
            free = [axis for axis, size in enumerate(tensor.shape) if isinstance(size, str)]
            dynamic[tensor.name] = dict.fromkeys(free, Dim.DYNAMIC)
    with torch.no_grad(), without_exporter_noise(), fake:
        program = torch.onnx.export(
            module,
            _arguments(spec, config, tensors),
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=_arguments(spec, config, dynamic),
            opset_version=lowering.traced_opset or lowering.opset,
            dynamo=True,
            verbose=False,
            optimize=False,
        )
    assert program is not None  # it is, with dynamo
    return program


def _arguments(spec: GraphSpec, config: FlamingoConfig, by_name: dict[str, Any]) -> tuple[Any, ...]:
    """Group values by the arguments of the graph's module: the language model takes media and past as lists."""
    values = [by_name[tensor.name] for tensor in spec.inputs]
    if spec.name != LANGUAGE_MODEL:
        return tuple(values)
    media = 2 * len(config.cross_layers)
    return (*values[:4], values[4 : 4 + media], values[4 + media :])


def _tidy(model: Any, spec: GraphSpec) -> None:
    """Name the free dimensions with the contract's letters, and drop the exporter's stack traces, which name local
    files."""
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
