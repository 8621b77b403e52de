"""The real TensorRT-RTX compiler takes every graph, for GPUs that are not here. Running an engine needs one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from flamingo_rt.bundle import Bundle
from flamingo_rt.checkpoints import open_checkpoint
from flamingo_rt.config import FlamingoConfig, ViTConfig
from flamingo_rt.contract import GRAPHS, LANGUAGE_MODEL, Limits
from flamingo_rt.engines.engine_files import read_engines
from flamingo_rt.engines.gpu import Gpu
from flamingo_rt.engines.onnx_sizes import with_sizes
from flamingo_rt.engines.tensorrt_builder import Build, Destination
from flamingo_rt.engines.tensorrt_callbacks import SCALE
from flamingo_rt.engines.tensorrt_module import TENSORRT_RTX, import_tensorrt
from flamingo_rt.errors import DataError
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.export.random import random_model
from flamingo_rt.presets import preset

module = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: flamingo-rt[tensorrt-rtx]")

CHECKPOINT = Path(__file__).parents[2] / "models" / "tiny"
EVERY_GPU = ("86", "89", "120")
CAPACITY = 256


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The model in the package, for TensorRT."""
    folder = tmp_path_factory.mktemp("rtx") / "bundle"
    return export_model(open_checkpoint(CHECKPOINT), folder, lowering="tensorrt", compute="fp16", compare=False)


def slice_of(name: str) -> FlamingoConfig:
    """A preset with one layer of everything, and fewer words."""
    config = preset(name)
    vision = config.vision
    vision = replace(vision, layers=1) if isinstance(vision, ViTConfig) else replace(vision, depths=(1, 1, 1, 1))
    return replace(
        config, vision=vision, resampler=replace(config.resampler, layers=1),
        language=replace(config.language, layers=1, vocab_size=1024),
    )


def build(bundle: Bundle, numbers: tuple[str, ...], batch: int = 2, capacity: int = CAPACITY) -> Build:
    runtime = import_tensorrt(TENSORRT_RTX)
    limits = Limits.of(bundle.config, batch=batch, capacity=capacity, visuals=4)
    return Build(bundle, runtime, Destination.of(runtime, None, numbers), limits)


def parsed_layers(bundle: Bundle, graph: str) -> Counter[str]:
    """The layers that the parser makes of a graph, by kind."""
    runtime, path = import_tensorrt(TENSORRT_RTX), bundle.graph_path(graph)
    log = module.Logger(module.Logger.ERROR)
    network = module.Builder(log).create_network(runtime.network_flags())
    parser = module.OnnxParser(network, log)
    assert parser.parse(with_sizes(path.read_bytes(), {"C": CAPACITY}), str(path))
    return Counter(network.get_layer(index).type.name for index in range(network.num_layers))


def test_the_packaged_model_is_compiled_with_progress_and_a_record(packaged: Bundle, counted) -> None:
    progress, sums = counted
    engines = build(packaged, ("86",)).run(progress)
    assert read_engines(packaged, TENSORRT_RTX, module.__version__, Gpu("A10", "8.6", 1, False)) == engines
    assert all(0 < sums[f"{name} engine"] <= SCALE for name in GRAPHS)
    for name in GRAPHS:
        weights = packaged.graph_path(name).with_name(f"{name}.onnx.data").stat().st_size
        assert engines.engine_path(name).stat().st_size > 0.9 * weights


@pytest.mark.parametrize(("lowering", "compute"), [("tensorrt", "fp32"), ("tensorrt-classic", "fp16")])
def test_graphs_with_attention_in_basic_operators_are_compiled(bundle_of, lowering: str, compute: str) -> None:
    assert build(bundle_of(lowering, compute), ("89",), capacity=96).run().lowering == lowering


def test_a_head_too_narrow_for_the_fused_kernels_is_refused_with_what_the_compiler_says(bundle_of) -> None:
    with pytest.raises(DataError, match=r"language_model.onnx: .*Attention operation was not supported"):
        build(bundle_of(), ("89",), capacity=96).run()


def test_the_cache_is_written_in_place_and_attention_is_one_layer(packaged: Bundle) -> None:
    layers, language = parsed_layers(packaged, LANGUAGE_MODEL), packaged.config.language.layers
    assert layers["KV_CACHE_UPDATE"] == 2 * language
    attentions = language + len(packaged.config.cross_layers)
    assert layers["ATTENTION_INPUT"] == layers["ATTENTION_OUTPUT"] == attentions


def test_pictures_are_resampled_with_the_same_attention(packaged: Bundle) -> None:
    assert parsed_layers(packaged, "resampler")["ATTENTION_INPUT"] == packaged.config.resampler.layers


def test_a_graph_that_the_parser_refuses_is_refused_with_the_node(bundle_of, monkeypatch) -> None:
    bundle = bundle_of()
    # Without its capacity the cache has a free length, which TensorRT refuses where it is written.
    monkeypatch.setattr("flamingo_rt.engines.tensorrt_builder.with_sizes", lambda model, sizes: model)
    with pytest.raises(DataError, match=r"node \S+ \(TensorScatter\): .*static sequence length"):
        build(bundle, ("89",), capacity=96).run()


@pytest.mark.slow
@pytest.mark.parametrize("compute", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["openflamingo-3b", "flamingo-3b"])
def test_slices_of_large_models_are_compiled_for_every_gpu(tmp_path: Path, name: str, compute: str) -> None:
    bundle = export_model(
        random_model(slice_of(name)), tmp_path / "bundle", lowering="tensorrt", compute=compute, compare=False
    )
    layers = parsed_layers(bundle, LANGUAGE_MODEL)
    assert (layers["KV_CACHE_UPDATE"], layers["ATTENTION_INPUT"]) == (2, 2)
    assert build(bundle, EVERY_GPU).run().capabilities == ("8.6", "8.9", "12.0")
    # Prefill and decode share the weights, where there is one row alone too.
    engine = build(bundle, ("89",), batch=1).run().engine_path(LANGUAGE_MODEL)
    weights = bundle.graph_path(LANGUAGE_MODEL).with_name("language_model.onnx.data")
    assert engine.stat().st_size < 1.2 * weights.stat().st_size
