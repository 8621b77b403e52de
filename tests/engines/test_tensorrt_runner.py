"""The TensorRT runner on stand-ins for TensorRT and CUDA: the tokens of ONNX Runtime, and what it asks of the two.

`fake_gpu.py` says what the stand-ins check, and what they cannot show.
"""

from __future__ import annotations

import gc
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import FakeGpu, OnnxCompute, install, write_engine

import flamingo_rt
from flamingo_rt import Image
from flamingo_rt.bundle import Bundle, read_bundle
from flamingo_rt.contract import (
    DECODE,
    IN_PLACE,
    LANGUAGE_MODEL,
    PREFILL,
    VISION_ENCODER,
    Limits,
    graph_specs,
    layer_parts,
    past_name,
    present_name,
    size_ranges,
)
from flamingo_rt.engines.compiled_graph import Profile
from flamingo_rt.engines.cuda import Cuda
from flamingo_rt.engines.engine_files import BuildOptions, EngineFolder, write_record
from flamingo_rt.engines.gpu import Gpu
from flamingo_rt.engines.ort import OrtEngine
from flamingo_rt.engines.tensorrt_module import import_tensorrt
from flamingo_rt.engines.tensorrt_runner import TensorRtEngine
from flamingo_rt.errors import DataError, DependencyError, UsageError
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.runtime.model import Model

# What a stand-in finds when Python frees its memory is a warning otherwise.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
LOWERINGS = ("tensorrt", "tensorrt-classic")
LIMITS = Limits(batch=4, tokens=64, visuals=6, frames=4, capacity=96)


@pytest.fixture(scope="module")
def bundles(exported) -> dict[str, Bundle]:
    """The same small model in each lowering. A slot of its cache is 64 bytes a row: aligned in batches of four."""
    return {lowering: read_bundle(exported(lowering, "fp32")) for lowering in ("ort", *LOWERINGS)}


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu()


class Runner:
    """Makes models on the stand-ins."""

    def __init__(self, bundles: dict[str, Bundle], folder: Path, gpu: FakeGpu, monkeypatch) -> None:
        self.bundles, self._folder, self.gpu, self._monkeypatch = bundles, folder, gpu, monkeypatch

    def engines(self, lowering: str, integers: str = "INT64", limits: Limits = LIMITS) -> EngineFolder:
        """The files of engines, and the modules that read them."""
        bundle = self.bundles[lowering]
        specs = graph_specs(bundle.config, "float32", bundle.cache_form)
        paths = {name: bundle.graph_path(name) for name in bundle.graphs}
        ort = OrtEngine(paths, bundle.config, threads=1, cache=bundle.cache_form)
        install(self._monkeypatch, self.gpu, {name: OnnxCompute(ort, spec) for name, spec in specs.items()})
        for name, cases in size_ranges(bundle.config, limits, bundle.cache_form).items():
            fixed = {"C": limits.capacity} if bundle.cache_form == IN_PLACE else {}
            write_engine(self._folder / f"{name}.engine", name, specs[name], cases, fixed, integers)
        return EngineFolder(
            self._folder, "tensorrt", "10.15.1", "Fake", ("8.9",), lowering, "float32", limits, BuildOptions()
        )

    def engine(self, lowering: str, **changes) -> TensorRtEngine:
        engines = self.engines(lowering, **changes)
        return TensorRtEngine(self.bundles[lowering], engines, import_tensorrt("tensorrt"))

    def model(self, lowering: str, **changes) -> Model:
        bundle = self.bundles[lowering]
        config = bundle.config
        tokenizer = TextTokenizer(bundle.tokenizer_path, config.tokens, config.language.vocab_size)
        return Model(self.engine(lowering, **changes), config, tokenizer)


@pytest.fixture
def runner(bundles, tmp_path, gpu, monkeypatch) -> Runner:
    return Runner(bundles, tmp_path, gpu, monkeypatch)


@pytest.fixture(scope="module")
def ort(bundles) -> Model:
    return flamingo_rt.load(bundles["ort"].path, "ort", threads=1)


@pytest.fixture(scope="module")
def pictures() -> list[Image]:
    rng = np.random.default_rng(0)
    return [Image(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)) for _ in range(4)]


@pytest.fixture(scope="module")
def text(ort) -> str:
    """A prompt whose answer does not end by itself within 8 tokens."""
    texts = ("Output:", "a red", "Question: how many", "two stars", "blue", "are there? Answer:", "square")
    return next(
        text for text in texts
        if ort.generate(text, max_new_tokens=8).result().stop_reason == "max_new_tokens"
    )


def assert_same(found, expected) -> None:
    """Results of the same tokens, several, and log-probabilities up to the lowerings' rounding."""
    assert max(len(result.tokens) for result in expected) > 2
    assert [result.tokens for result in found] == [result.tokens for result in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-3)


@pytest.mark.parametrize("lowering", LOWERINGS)
class TestSameTokensAsOnnxRuntime:
    def test_of_one_row_with_pictures(self, lowering, runner, ort, pictures) -> None:
        parts = [pictures[0], "Output: a red", pictures[1], "Output:"]
        for options in ({}, {"speculation": 0}, {"temperature": 1.0, "seed": 3}, {"beams": 3}):
            found, expected = (
                model.generate(parts, max_new_tokens=12, **options).result()
                for model in (runner.model(lowering), ort)
            )
            assert_same([found], [expected])

    def test_of_rows_of_several_lengths_behind_a_prefix(self, lowering, runner, ort, pictures) -> None:
        queries = [[pictures[1], "Output:"], "Question: how many? Answer:", "Output: a"]
        found, expected = (
            model.generate_batch(
                queries, prefix=model.prompt([pictures[0], "Output: two stars"]), max_new_tokens=8
            )
            for model in (runner.model(lowering), ort)
        )
        assert_same(found, expected)

    def test_of_four_equal_rows(self, lowering, runner, ort, pictures) -> None:
        queries = [[pictures[index], "Output:"] for index in range(4)]
        found, expected = (model.generate_batch(queries, max_new_tokens=6) for model in (runner.model(lowering), ort))
        assert_same(found, expected)

    def test_of_choices(self, lowering, runner, ort, pictures) -> None:
        scores = [
            {score.text: score.logprob for score in model.score([pictures[0], "Output:"], ["red", "a blue square"])}
            for model in (runner.model(lowering), ort)
        ]
        assert scores[0] == pytest.approx(scores[1], abs=1e-3)

    def test_with_integers_of_32_bits_as_tensorrt_8_has_them(self, lowering, runner, ort, text) -> None:
        model = runner.model(lowering, integers="INT32")
        found, expected = (each.generate(text, max_new_tokens=6).result() for each in (model, ort))
        assert_same([found], [expected])

    def test_in_numpy_arrays_of_the_contract(self, lowering, runner, ort) -> None:
        """What the comparison of an export with PyTorch binds."""
        config = ort.config
        spec = graph_specs(config)[LANGUAGE_MODEL]
        sizes, logits = {"B": 2, "T": 3, "K": 3, "S": config.resampler.latents, "C": 96}, []
        for engine in (runner.engine(lowering), ort.engine):
            rng = np.random.default_rng(1)
            inputs = {
                tensor.name: rng.standard_normal(tensor.resolve(sizes), dtype=np.float32)
                if tensor.dtype == "float32" else np.ones(tensor.resolve(sizes), np.int64) for tensor in spec.inputs
            }
            inputs["cache_length"][:] = 4  # ONNX Runtime's operator continues rows of one length
            if engine.name == "ort":
                inputs = {name: array[:1].copy() for name, array in inputs.items()}
            rows = len(inputs["input_ids"])
            outputs = {present_name(*part): inputs[past_name(*part)] for part in layer_parts(config.language.layers)}
            outputs["logits"] = np.empty((rows, 3, config.language.vocab_size), np.float32)
            engine.bind(LANGUAGE_MODEL, inputs, outputs)()
            logits.append((outputs["logits"][0], inputs[past_name(1, "key")][0, :, :7]))
        for found, expected in zip(*logits, strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_a_step_is_captured_on_its_second_run_and_then_replayed(runner, gpu, text) -> None:
    runner.model("tensorrt").generate(text, max_new_tokens=6, speculation=0).result()
    executed = gpu.called("execute")
    language = [call for call in executed if call[1] == LANGUAGE_MODEL]
    assert len(language) == 3, "the prompt, one step, one capture; all else is replayed"
    assert len(gpu.called("begin capture")) == 1
    assert len(gpu.called("launch")) == 4
    shapes = [call for call in gpu.called("shape") if call[1] == "input_ids"]
    assert [shape for *_, shape in shapes] == [(1, shapes[0][2][1]), (1, 1)]


def test_a_classic_step_is_not_captured_and_reads_what_is_cached_alone(runner, gpu, text) -> None:
    result = runner.model("tensorrt-classic").generate(text, max_new_tokens=6, speculation=0).result()
    assert not gpu.called("begin capture")
    slots = [call[2][0] for call in gpu.called("shape") if call[1] == past_name(0, "key")]
    prompt = result.prompt_tokens
    assert slots == [1, *range(prompt, prompt + 5)]


def test_another_generation_between_two_steps_does_not_disturb_them(runner, ort, pictures, text) -> None:
    model = runner.model("tensorrt")
    expected = [
        ort.generate(parts, max_new_tokens=8, speculation=0).result().tokens
        for parts in (text, [pictures[0], "a"])
    ]
    first = model.generate(text, max_new_tokens=8, speculation=0)
    second = model.generate([pictures[0], "a"], max_new_tokens=8, speculation=0)
    pairs = [iter(first), iter(second)]
    while pairs:
        pairs = [pieces for pieces in pairs if next(pieces, None) is not None]
    assert [first.result().tokens, second.result().tokens] == expected


def test_what_cannot_be_captured_is_run_as_it_is(runner, gpu, ort, text) -> None:
    gpu.capture_fails = True
    found, expected = (
        model.generate(text, max_new_tokens=6, speculation=0).result() for model in (runner.model("tensorrt"), ort)
    )
    assert_same([found], [expected])
    assert len(gpu.called("begin capture")) == 1
    assert not gpu.called("launch")


def test_media_is_uploaded_once(runner, gpu, pictures, monkeypatch) -> None:
    uploads, upload = [], Cuda.upload
    monkeypatch.setattr(Cuda, "upload", lambda self, address, array: (uploads.append(array.shape), upload(
        self, address, array)))
    model = runner.model("tensorrt")
    model.generate([pictures[0], "Output:"], max_new_tokens=8, speculation=0).result()
    media = (1, 2, 5, 16)
    layers = len(model.config.cross_layers)
    assert uploads.count(media) == 2 * 2 * layers, "keys and values, for the prompt and for all steps"


def test_memory_is_given_back(runner, gpu) -> None:
    model = runner.model("tensorrt")
    idle = gpu.used
    model.generate("Output:", max_new_tokens=6).result()
    gc.collect()
    assert gpu.used == idle == 0


def test_too_little_memory_says_what_would_fit(runner, gpu) -> None:
    model = runner.model("tensorrt")
    gpu.memory = gpu.used + 3 * 96 * 6 * 64 + 10_000
    with pytest.raises(DataError, match=r"cache of 4 rows of 96 tokens, 0\.1 MB in all, .*; 3 of these rows would fit"):
        model.engine.cache(4, 96)
    gpu.memory = gpu.used + 10 * 6 * 64
    with pytest.raises(DataError, match=r"10 tokens would fit: flamingo-rt build --capacity"):
        model.engine.cache(1, 96)


@pytest.mark.parametrize(("limits", "parts", "message"), [
    (replace(LIMITS, tokens=4), "Output: a red circle and a blue square", r"input_ids is \[1, \d+\], from \[1, 1\]"),
    (replace(LIMITS, batch=1), None, r"input_ids is \[2, \d+\]"),
    (replace(LIMITS, capacity=8), "Output: a red circle and a blue square", r"tokens are asked for, .* holds 8"),
])
def test_sizes_that_were_not_compiled_are_refused_with_the_command(runner, limits, parts, message) -> None:
    model = runner.model("tensorrt", limits=limits)
    with pytest.raises(DataError, match=f"{message}.*flamingo-rt build"):
        if parts is None:
            model.generate_batch(["Output:", "Output:"], max_new_tokens=2)
        else:
            model.generate(parts, max_new_tokens=8).result()


def test_a_file_that_is_no_engine_is_refused_with_the_command(runner) -> None:
    engines = runner.engines("tensorrt")
    engines.engine_path(VISION_ENCODER).write_bytes(b"\0damaged")
    with pytest.raises(DataError, match=r"vision_encoder.engine cannot be loaded \(no magic tag\).*flamingo-rt build"):
        TensorRtEngine(runner.bundles["tensorrt"], engines, import_tensorrt("tensorrt"))


@pytest.mark.parametrize(("old", "new"), [('"input_ids"', '"input_id"'), ('"FLOAT"', '"HALF"'), ("300", "301")])
def test_an_engine_of_another_model_is_refused(runner, old, new) -> None:
    engines = runner.engines("tensorrt")
    path = engines.engine_path(LANGUAGE_MODEL)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match="does not fit the configuration"):
        TensorRtEngine(runner.bundles["tensorrt"], engines, import_tensorrt("tensorrt"))


def test_without_pycuda_the_extra_is_named(runner, monkeypatch) -> None:
    engines = runner.engines("tensorrt")
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(DependencyError, match=r"flamingo-rt\[tensorrt\]"):
        TensorRtEngine(runner.bundles["tensorrt"], engines, import_tensorrt("tensorrt"))


class CudaArray:
    """What CuPy, numba and PyCUDA have: an array in the stand-in's memory."""

    def __init__(self, gpu: FakeGpu, array: np.ndarray, **changes) -> None:
        self._gpu = gpu
        self.address = gpu.allocate(array.nbytes)
        gpu.bytes_at(self.address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": array.dtype.str, "data": (self.address, False), "version": 3,
            "strides": None, "stream": 2, **changes,
        }


class DlpackArray:
    """What torch has: the same memory through DLPack, which is told the stream that reads it."""

    def __init__(self, gpu: FakeGpu, array: np.ndarray) -> None:
        count = array.nbytes
        held = gpu.bytes_at(gpu.allocate(count), count).view(array.dtype).reshape(array.shape)
        held[:] = array
        self._array, self.stream = held if array.flags.c_contiguous else held.transpose(0, 1, 3, 2), None

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, stream: int):
        self.stream = stream
        return self._array.__dlpack__()


@pytest.mark.parametrize("kind", [CudaArray, DlpackArray])
def test_pixels_in_device_memory_are_used_where_they_are(runner, gpu, ort, kind) -> None:
    pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    spec = graph_specs(ort.config)[VISION_ENCODER].output("features")
    features = [np.empty(spec.resolve({"N": 2}), np.float32) for _ in range(2)]
    array, engine = kind(gpu, pixels), runner.engine("tensorrt")
    engine.bind(VISION_ENCODER, {"pixel_values": array}, {"features": features[0]})()
    ort.engine.bind(VISION_ENCODER, {"pixel_values": pixels}, {"features": features[1]})()
    np.testing.assert_allclose(features[0], features[1], rtol=0, atol=1e-4)
    if kind is CudaArray:
        assert gpu.called("wait for") == [("wait for", 2)]
    else:
        assert array.stream == 7, "the producer must know which stream waits"


PIXELS = np.zeros((2, 3, 32, 32), dtype=np.float32)


@pytest.mark.parametrize("make", [
    lambda gpu: CudaArray(gpu, PIXELS, strides=(12288, 4, 384, 12)), lambda gpu: CudaArray(gpu, PIXELS, typestr="<f2"),
    lambda gpu: CudaArray(gpu, PIXELS, mask=object()), lambda gpu: DlpackArray(gpu, PIXELS.astype(np.float64)),
    lambda gpu: DlpackArray(gpu, PIXELS.transpose(0, 1, 3, 2)), lambda gpu: DlpackArray(gpu, PIXELS.astype(np.float16)),
], ids=["strides", "half", "masked", "dlpack double", "dlpack strides", "dlpack half"])
def test_device_arrays_that_cannot_be_read_in_place_are_refused(runner, gpu, ort, make) -> None:
    features = np.empty(graph_specs(ort.config)[VISION_ENCODER].output("features").resolve({"N": 2}), np.float32)
    engine = runner.engine("tensorrt")
    with pytest.raises(ValueError, match="device array"):
        engine.bind(VISION_ENCODER, {"pixel_values": make(gpu)}, {"features": features})


# What the stand-ins notice: a runner that makes one of these mistakes fails the tests above.


def generate_after(monkeypatch, runner, lowering: str, place: str, mistake) -> None:
    """Let the runner make a mistake, and generate with it."""
    monkeypatch.setattr(place, mistake)
    runner.model(lowering).generate("Output:", max_new_tokens=4, speculation=0, beams=2).result()


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_a_cache_that_is_not_zeroed_is_noticed(runner, monkeypatch, lowering) -> None:
    with pytest.raises(AssertionError, match="holds NaN"):
        generate_after(
            monkeypatch, runner, lowering, "flamingo_rt.engines.cuda.Cuda.zero", lambda self, memory: None
        )


def test_a_missing_shape_is_noticed(runner, monkeypatch) -> None:
    use = Profile.use

    def forgetful(self, user, shapes) -> None:
        use(self, user, {name: shape for name, shape in shapes.items() if name != "cache_length"})

    with pytest.raises((AssertionError, KeyError), match="cache_length"):
        generate_after(monkeypatch, runner, "tensorrt", "flamingo_rt.engines.compiled_graph.Profile.use", forgetful)


def test_memory_that_was_freed_is_noticed(runner, monkeypatch) -> None:
    bind = Profile.bind

    def dangling(self, addresses) -> None:
        freed = runner.gpu.allocate(4096)
        runner.gpu.free(freed)
        bind(self, {**addresses, **({"input_ids": freed} if "input_ids" in addresses else {})})

    with pytest.raises(AssertionError, match="are not allocated, or were freed"):
        generate_after(monkeypatch, runner, "tensorrt", "flamingo_rt.engines.compiled_graph.Profile.bind", dangling)


def test_memory_that_is_not_pinned_in_a_captured_step_is_noticed(runner, monkeypatch, text) -> None:
    monkeypatch.setattr("flamingo_rt.engines.cuda.Cuda.pinned", lambda self, shape, dtype: np.empty(shape, dtype))
    with pytest.raises(AssertionError, match="pageable memory in a graph"):
        runner.model("tensorrt").generate(text, max_new_tokens=6, speculation=0).result()


# Opening a bundle that has engines.


@pytest.fixture
def with_engines(runner, tmp_path, monkeypatch) -> Path:
    """A bundle and, in it, engines for the GPU that seems to be here."""
    folder = tmp_path / "bundle"
    shutil.copytree(runner.bundles["tensorrt"].path, folder)
    engines = replace(runner.engines("tensorrt"), path=folder / "engines" / "tensorrt-fake")
    engines.path.mkdir(parents=True)
    for file in tmp_path.glob("*.engine"):
        shutil.copy(file, engines.path)
    write_record(engines.path, engines, read_bundle(folder))
    monkeypatch.setattr("flamingo_rt.engines.gpu.find_gpu", lambda: Gpu("Fake", "8.9", 1 << 30, False))
    return folder


@pytest.mark.parametrize("backend", ["auto", "tensorrt"])
def test_a_bundle_with_engines_for_this_gpu_runs_on_them(with_engines, backend, ort, gpu, text) -> None:
    model = flamingo_rt.load(with_engines, backend)
    assert model.engine.name == "tensorrt"
    found, expected = (each.generate(text, max_new_tokens=4).result() for each in (model, ort))
    assert_same([found], [expected])
    assert gpu.called("execute")


def test_engines_that_do_not_run_here_are_left_for_the_cpu_with_a_warning(with_engines, monkeypatch, caplog) -> None:
    monkeypatch.setattr("flamingo_rt.engines.gpu.find_gpu", lambda: None)
    assert flamingo_rt.load(with_engines).engine.name == "ort"
    (warning,) = caplog.messages
    assert "ONNX Runtime runs it on the CPU, its engines do not run: no NVIDIA GPU is found" in warning


def test_asked_for_engines_that_do_not_run_are_an_error(with_engines, monkeypatch) -> None:
    monkeypatch.setattr("flamingo_rt.engines.gpu.find_gpu", lambda: Gpu("Other", "8.7", 1 << 30, True))
    with pytest.raises(DataError, match=r"no engines for Other .*flamingo-rt build"):
        flamingo_rt.load(with_engines, "tensorrt")
    monkeypatch.setattr("flamingo_rt.engines.gpu.find_gpu", lambda: None)
    with pytest.raises(DependencyError, match="no NVIDIA GPU is found"):
        flamingo_rt.load(with_engines, "tensorrt")


def test_a_bundle_without_engines_shows_the_command_that_builds_them(with_engines) -> None:
    shutil.rmtree(with_engines / "engines")
    with pytest.raises(DataError, match=r"has no engines for TensorRT: flamingo-rt build"):
        flamingo_rt.load(with_engines, "tensorrt")
    assert flamingo_rt.load(with_engines).engine.name == "ort"


def test_a_checkpoint_has_no_engines(bundles) -> None:
    with pytest.raises(UsageError, match="the tensorrt backend runs a bundle: .*flamingo-rt export"):
        flamingo_rt.load(bundles["ort"].path.parent / "checkpoint", "tensorrt")


def test_profiles_are_those_of_the_contract(runner) -> None:
    """Decode is the later profile: a step of one token takes it, all else the first."""
    cases = size_ranges(runner.bundles["tensorrt"].config, LIMITS)[LANGUAGE_MODEL]
    assert list(cases) == [PREFILL, DECODE]
