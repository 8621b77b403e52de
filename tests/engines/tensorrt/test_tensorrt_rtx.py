"""The real TensorRT-RTX compiler takes every graph, for GPUs that are not here. Running an engine needs one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from inspected_builds import EVERY_GPU, Inspected, inspected, plan, whole_cache
from preset_slices import FORMS, export_slice

from flamingo_rt.bundle import Bundle
from flamingo_rt.checkpoints import open_checkpoint
from flamingo_rt.contract import GRAPHS, LANGUAGE_MODEL, RESAMPLER, VISION_ENCODER
from flamingo_rt.engines.gpu.nvidia_driver import Gpu
from flamingo_rt.engines.tensorrt.callbacks import SCALE, Caught, make_log
from flamingo_rt.engines.tensorrt.engine_files import read_engines
from flamingo_rt.engines.tensorrt.versions import TENSORRT_RTX
from flamingo_rt.errors import DataError
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.export.quantization.quantization_options import Quantize
from flamingo_rt.graph_files import read_graph
from flamingo_rt.loading import PACKAGED_BUNDLE

module = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: flamingo-rt[tensorrt-rtx]")

CHECKPOINT = Path(__file__).parents[3] / "models" / "tiny"
# Compiling takes half of the suite's time: the other two forms differ little in what the compiler makes of them.
OFTEN = [form if form in ("fp16", "int4") else pytest.param(form, marks=pytest.mark.slow) for form in FORMS]
PROFILES = 2  # of the language model: prefill and decode
KERNELS_BYTES = 12e6  # of compiled kernels beside the weights; 2 to 9 MB were seen


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """The model in the package, for TensorRT, in fp16 or with its weights in fewer bits; made once for each."""
    folder, made = tmp_path_factory.mktemp("rtx"), {}

    def bundle(form: str) -> Bundle:
        if form not in made:
            compute, scheme = FORMS.get(form, ("fp16", form))
            made[form] = export_model(
                open_checkpoint(CHECKPOINT), folder / form, lowering="tensorrt", compute=compute, compare=False,
                quantize=None if scheme is None else Quantize(scheme, rounding="nearest"),
            )
        return made[form]

    return bundle


def weight_bytes(bundle: Bundle, graph: str) -> int:
    return bundle.graph_path(graph).with_name(f"{graph}.onnx.data").stat().st_size


def engine_bytes(build: Inspected, graph: str) -> int:
    assert build.engines is not None
    return build.engines.engine_path(graph).stat().st_size


def check_layers(bundle: Bundle, build: Inspected) -> None:
    """Every attention is a layer of its own, before and behind the compiler, and the cache is written in place."""
    config = bundle.config
    language, cross, resampler = config.language.layers, len(config.cross_layers), config.resampler.layers
    network = build.network[LANGUAGE_MODEL]
    assert network["KV_CACHE_UPDATE"] == 2 * language
    assert network["ATTENTION_INPUT"] == network["ATTENTION_OUTPUT"] == language + cross
    assert build.network[RESAMPLER]["ATTENTION_INPUT"] == resampler
    assert build.attention_kernels(LANGUAGE_MODEL) == PROFILES * (language + cross)
    assert build.attention_kernels(RESAMPLER) == resampler
    assert build.written_in_place(LANGUAGE_MODEL) == whole_cache(language)
    readers = build.cache_readers(LANGUAGE_MODEL, " [profile 1]")
    assert len(readers) == language, "of one new token, attention alone: no layer copies the cache"
    assert all(name.startswith("_gemv_mha") for name in readers)


@pytest.mark.parametrize("form", OFTEN)
@pytest.mark.parametrize("name", ["openflamingo-3b", "flamingo-3b"])
def test_slices_of_large_models_are_compiled_for_every_gpu(tmp_path: Path, name: str, form: str) -> None:
    bundle = export_slice(name, form, tmp_path / "bundle")
    build = inspected(plan(bundle))
    assert build.engines is not None
    assert build.engines.capabilities == ("8.6", "8.9", "12.0")
    check_layers(bundle, build)
    if name == "openflamingo-3b":
        assert build.attention_kernels(VISION_ENCODER) == build.network[VISION_ENCODER]["ATTENTION_INPUT"] == 1
    # Prefill and decode share the weights, and weights of fewer bits stay packed.
    for graph in GRAPHS:
        weights = weight_bytes(bundle, graph)
        assert 0.9 * weights < engine_bytes(build, graph) < weights + KERNELS_BYTES, graph


@pytest.mark.parametrize("form", [*OFTEN, pytest.param("mixed", marks=pytest.mark.slow)])
def test_the_packaged_model_is_compiled_for_every_gpu(packaged, form: str) -> None:
    bundle = packaged(form)
    build = inspected(plan(bundle))
    assert build.engines is not None
    assert build.engines.capabilities == ("8.6", "8.9", "12.0")
    check_layers(bundle, build)


@pytest.mark.slow
def test_fp8_is_compiled_for_the_gpus_that_have_it(packaged) -> None:
    bundle = packaged("fp8")
    build = inspected(plan(bundle, ("89", "120")))
    check_layers(bundle, build)


def test_an_engine_comes_with_progress_and_a_record(packaged, counted) -> None:
    (progress, sums), bundle = counted, packaged("fp16")
    engines = plan(bundle, ("86",)).run(progress)
    assert read_engines(bundle, TENSORRT_RTX, module.__version__, Gpu("A10", "8.6", 1, False)) == engines
    assert all(0 < sums[f"{name} engine"] <= SCALE for name in GRAPHS)


@pytest.mark.slow
def test_with_one_row_alone_prefill_and_decode_share_the_weights_too(packaged) -> None:
    bundle = packaged("fp16")
    alone, several = (inspected(plan(bundle, ("89",), batch=batch)) for batch in (1, 2))
    weights = weight_bytes(bundle, LANGUAGE_MODEL)
    assert engine_bytes(alone, LANGUAGE_MODEL) < engine_bytes(several, LANGUAGE_MODEL) + 0.5 * weights


@pytest.mark.parametrize(("lowering", "compute"), [("tensorrt", "fp32"), ("tensorrt-classic", "fp16")])
def test_graphs_with_attention_in_basic_operators_are_compiled(bundle_of, lowering: str, compute: str) -> None:
    assert plan(bundle_of(lowering, compute), EVERY_GPU, capacity=96).run().lowering == lowering


@pytest.mark.slow
@pytest.mark.parametrize("head_width", [36, 100])
def test_heads_that_no_kernel_takes_are_padded_to_those_that_one_does(tmp_path: Path, head_width: int) -> None:
    bundle = export_slice("openflamingo-3b", "fp16", tmp_path / "bundle", head_width=head_width)
    check_layers(bundle, inspected(plan(bundle, ("89",))))


def test_a_head_too_narrow_for_the_fused_kernels_is_refused_with_what_the_compiler_says(bundle_of) -> None:
    with pytest.raises(DataError, match=r"language_model.onnx: .*Attention operation was not supported"):
        plan(bundle_of(), ("89",), capacity=96).run()


def test_a_graph_that_the_parser_refuses_is_refused_with_the_node(bundle_of, monkeypatch) -> None:
    bundle = bundle_of()
    # Without its capacity the cache has a free length, which TensorRT refuses where it is written.
    monkeypatch.setattr("flamingo_rt.engines.tensorrt.builder.with_sizes", lambda model, sizes: model)
    with pytest.raises(DataError, match=r"node \S+ \(TensorScatter\): .*static sequence length"):
        plan(bundle, ("89",), capacity=96).run()


@pytest.mark.parametrize("folder", ["linked", "not UTF-8"])
def test_graphs_in_folders_as_people_have_them_are_parsed_with_their_weights(tmp_path: Path, folder: str) -> None:
    """Links into a store, as the Hugging Face cache has them, and a folder whose name is no text."""
    made = tmp_path / "snapshot" if folder == "linked" else Path(os.fsdecode(os.fsencode(tmp_path) + b"/mod\xe8le"))
    try:
        made.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    for index, name in enumerate((f"{RESAMPLER}.onnx", f"{RESAMPLER}.onnx.data")):
        if folder == "linked":
            shutil.copy(PACKAGED_BUNDLE / name, tmp_path / f"{index}a1b2c3")
            (made / name).symlink_to(Path("..") / f"{index}a1b2c3")
        else:
            shutil.copy(PACKAGED_BUNDLE / name, made / name)
    graph, log = read_graph(made / f"{RESAMPLER}.onnx"), make_log(module, Caught())
    network = module.Builder(log).create_network(0)
    parser = module.OnnxParser(network, log)
    assert parser.parse(graph.model, graph.beside), log.errors
    assert (parser.num_errors, network.num_inputs) == (0, 1)
