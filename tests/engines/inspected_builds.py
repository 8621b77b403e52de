"""Builds of TensorRT-RTX that tell which layers the parser made and which ones the compiler made of them.

An `EngineInspector` is asked of an engine that was loaded, which needs a GPU. The compiler's log has the same: with
detailed verbosity it lists the layers of the finished engine, one a line.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from flamingo_rt.bundle import Bundle
from flamingo_rt.contract import Limits, layer_parts, present_name
from flamingo_rt.engines.tensorrt import builder
from flamingo_rt.engines.tensorrt.builder import Build, Destination
from flamingo_rt.engines.tensorrt.engine_files import EngineFolder
from flamingo_rt.engines.tensorrt.versions import TENSORRT_RTX, import_tensorrt
from flamingo_rt.progress import Progress, silent

EVERY_GPU = ("86", "89", "120")
CAPACITY = 256
ATTENTION = re.compile(r"Name: _gem[mv]_mha")  # of several new tokens, and of one
CACHE_TENSOR = re.compile(r"Name: (present\.\d+\.(?:key|value))( \[profile 1\])?,")


@dataclass
class Inspected:
    """The engines, and by graph the kinds of the network's layers and the compiled engine's layers, a text each."""

    engines: EngineFolder | None = None
    network: dict[str, Counter[str]] = field(default_factory=dict)
    compiled: dict[str, list[str]] = field(default_factory=dict)

    def attention_kernels(self, graph: str) -> int:
        """Number of a graph's compiled layers that are fused attention, over all its profiles."""
        return sum(bool(ATTENTION.match(layer)) for layer in self.compiled[graph])

    def cache_readers(self, graph: str, profile: str) -> list[str]:
        """The compiled layers of a profile that read the cache and do not write it, by name."""
        found = []
        for layer in self.compiled[graph]:
            inputs, _, outputs = layer.partition("Outputs: [")
            read, written = (
                {name for name, where in CACHE_TENSOR.findall(part) if where == profile} for part in (inputs, outputs)
            )
            if read - written:
                found.append(layer.removeprefix("Name: ").partition(" ")[0])
        return found

    def written_in_place(self, graph: str) -> set[tuple[str, str]]:
        """The cache tensors that a compiled layer has among its inputs and its outputs: name and profile."""
        found: set[tuple[str, str]] = set()
        for layer in self.compiled[graph]:
            inputs, _, outputs = layer.partition("Outputs: [")
            found |= set(CACHE_TENSOR.findall(inputs)) & set(CACHE_TENSOR.findall(outputs))
        return found


def plan(bundle: Bundle, numbers: tuple[str, ...] = EVERY_GPU, batch: int = 2, capacity: int = CAPACITY) -> Build:
    """The build of a bundle for GPUs of these compute capabilities."""
    runtime = import_tensorrt(TENSORRT_RTX)
    limits = Limits.of(bundle.config, batch=batch, capacity=capacity, visuals=4)
    return Build(bundle, runtime, Destination.of(runtime, None, numbers), limits)


def inspected(build: Build, progress: Progress = silent) -> Inspected:
    """Run a build, and see what becomes of its layers."""
    found = Inspected()
    with _listening(build.runtime.module, found):
        found.engines = build.run(progress)
    return found


@contextmanager
def _listening(module: Any, found: Inspected) -> Iterator[None]:
    graphs: list[str] = []

    class Compiler(builder._Compiler):
        def _check_interface(self, name: str, network: Any) -> None:
            super()._check_interface(name, network)
            graphs.append(name)
            layers = (network.get_layer(index) for index in range(network.num_layers))
            found.network[name] = Counter(layer.type.name for layer in layers)

        def _config(self, builder: Any) -> Any:
            config = super()._config(builder)
            config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
            return config

    class Log(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.ERROR:
                self.errors.append(message)
            elif "LayerType: " in message:
                lines = [line for line in message.splitlines() if "LayerType: " in line]
                found.compiled.setdefault(graphs[-1], []).extend(lines)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "_Compiler", Compiler)
        patch.setattr(builder, "make_log", lambda module, caught: Log())
        yield


def whole_cache(layers: int) -> set[tuple[str, str]]:
    """Every tensor of the cache in each of the two profiles, as `Inspected.written_in_place` names them."""
    return {
        (present_name(layer, part), profile) for layer, part in layer_parts(layers) for profile in ("", " [profile 1]")
    }
