"""Tracing a graph takes seconds and gives the same for all models of a configuration, whatever their weights: the suite
does it once for each."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from torch.onnx._internal.exporter._registration import ONNXRegistry

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import RESAMPLER, VISION_ENCODER, GraphSpec
from flamingo_rt.export import tracing


@contextmanager
def tracing_once() -> Iterator[None]:
    """Within, `trace_graphs` asks PyTorch's exporter once for each graph that differs."""
    exported, made = tracing._exported, {}

    def once(module: Any, spec: GraphSpec, config: FlamingoConfig, lowering: Any, fake: Any) -> Any:
        key = (spec, _decisive(spec.name, config), lowering)
        if key not in made:
            made[key] = exported(module, spec, config, lowering, fake)
            made[key].exported_program = None  # as large as the graph, and not needed
        program = copy.copy(made[key])
        program.model = made[key].model.clone()
        return program

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "_exported", once)
        # The exporter (torch 2.13) makes its table of operators anew for each graph: half a second.
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


def _decisive(graph: str, config: FlamingoConfig) -> tuple[Any, ...]:
    """The part of a configuration that a graph depends on."""
    if graph == VISION_ENCODER:
        return (config.vision,)
    if graph == RESAMPLER:
        return config.vision, config.resampler, config.cross_attention, config.cross_layers, config.language.width
    plain = FlamingoConfig()
    return (replace(config, name="", preprocessing=plain.preprocessing, tokens=plain.tokens, prompts=plain.prompts),)
