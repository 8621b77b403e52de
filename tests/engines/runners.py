"""Models on the stand-ins, and what their results are compared by."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from fake_gpu import FakeGpu
from fake_onnxruntime import FakeOnnxRuntime
from fake_tensorrt import OnnxCompute, install, write_engine

from flamingo_rt.backend import Backend
from flamingo_rt.bundle import Bundle
from flamingo_rt.contract import (
    IN_PLACE,
    LANGUAGE_MODEL,
    Limits,
    graph_specs,
    size_ranges,
)
from flamingo_rt.engines.ort import OrtBackend
from flamingo_rt.engines.ort_gpu import CudaProvider, OrtGpuBackend, Provider
from flamingo_rt.engines.tensorrt.engine_files import BuildOptions, EngineFolder
from flamingo_rt.engines.tensorrt.runner import TensorRtBackend
from flamingo_rt.engines.tensorrt.versions import import_tensorrt
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.runtime.model import Model

LOWERINGS = ("tensorrt", "tensorrt-classic")
LIMITS = Limits(batch=4, tokens=64, visuals=6, frames=4, capacity=96)


class Runner:
    """Makes models on the stand-ins."""

    def __init__(self, bundles: dict[str, Bundle], folder: Path, gpu: FakeGpu, monkeypatch) -> None:
        self.bundles, self._folder, self.gpu, self._monkeypatch = bundles, folder, gpu, monkeypatch

    def engines(self, lowering: str, integers: str = "INT64", limits: Limits = LIMITS) -> EngineFolder:
        """The files of engines, and the modules that read them."""
        bundle = self.bundles[lowering]
        specs = graph_specs(bundle.config, bundle.compute, bundle.cache_form)
        paths = {name: bundle.graph_path(name) for name in bundle.graphs}
        ort = OrtBackend(paths, bundle.config, threads=1, dtype=bundle.compute, cache=bundle.cache_form)
        install(self._monkeypatch, self.gpu, {name: OnnxCompute(ort, spec) for name, spec in specs.items()})
        for name, cases in size_ranges(bundle.config, limits, bundle.cache_form).items():
            fixed = {"C": limits.capacity} if bundle.cache_form == IN_PLACE else {}
            write_engine(self._folder / f"{name}.engine", name, specs[name], cases, fixed, integers)
        return EngineFolder(
            self._folder, "tensorrt", "10.15.1", "Fake", ("8.9",), bundle.graphs[LANGUAGE_MODEL].lowering,
            bundle.compute, limits, BuildOptions(),
        )

    def backend(self, lowering: str, **changes) -> TensorRtBackend:
        engines = self.engines(lowering, **changes)
        return TensorRtBackend(self.bundles[lowering], engines, import_tensorrt("tensorrt"))

    def model(self, lowering: str, **changes) -> Model:
        return model_of(self.backend(lowering, **changes), self.bundles[lowering])


class OnCuda:
    """Makes models on the stand-in ``runtime`` for onnxruntime-gpu."""

    def __init__(self, bundles: dict[str, Bundle], runtime: FakeOnnxRuntime) -> None:
        self.bundles, self.runtime = bundles, runtime

    def backend(self, name: str, provider: type[Provider] = CudaProvider) -> OrtGpuBackend:
        return OrtGpuBackend(self.bundles[name], provider())

    def model(self, name: str, provider: type[Provider] = CudaProvider) -> Model:
        return model_of(self.backend(name, provider), self.bundles[name])


def model_of(backend: Backend, bundle: Bundle) -> Model:
    """A model of a bundle on an engine."""
    config = bundle.config
    return Model(backend, config, TextTokenizer(bundle.tokenizer_path, config.tokens, config.language.vocab_size))


def assert_same(found, expected) -> None:
    """Results of the same tokens, several, and log-probabilities up to the lowerings' rounding."""
    assert max(len(result.tokens) for result in expected) > 2
    assert [result.tokens for result in found] == [result.tokens for result in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-3)


@contextmanager
def without_collector() -> Iterator[None]:
    """Without the collector of circles: a GPU's memory cannot wait for it."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
