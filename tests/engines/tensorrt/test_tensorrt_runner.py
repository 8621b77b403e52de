"""The TensorRT runner on stand-ins for TensorRT and CUDA: the tokens of ONNX Runtime, and what it asks of the two.

`fake_gpu.py` and `fake_tensorrt.py` say what the stand-ins check, and what they cannot show.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from runners import LIMITS, LOWERINGS, assert_same, model_of, without_collector

from flamingo_rt.contract import (
    LANGUAGE_MODEL,
    VISION_ENCODER,
    graph_specs,
    layer_parts,
    past_name,
    present_name,
)
from flamingo_rt.engines.gpu.cuda import Cuda
from flamingo_rt.engines.ort import OrtBackend
from flamingo_rt.engines.tensorrt.runner import TensorRtBackend
from flamingo_rt.engines.tensorrt.versions import import_tensorrt
from flamingo_rt.errors import DataError

# What a stand-in finds when Python frees its memory is a warning otherwise.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


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
        """Arrays as the comparison of an export with PyTorch binds them."""
        config = ort.config
        spec = graph_specs(config)[LANGUAGE_MODEL]
        sizes, logits = {"B": 2, "T": 3, "K": 3, "S": config.resampler.latents, "C": 96}, []
        for backend in (runner.backend(lowering), ort.backend):
            rng = np.random.default_rng(1)
            inputs = {
                tensor.name: rng.standard_normal(tensor.resolve(sizes), dtype=np.float32)
                if tensor.dtype == "float32" else np.ones(tensor.resolve(sizes), np.int64) for tensor in spec.inputs
            }
            inputs["cache_length"][:] = 4  # ONNX Runtime's operator continues rows of one length
            if backend.name == "ort":
                inputs = {name: array[:1].copy() for name, array in inputs.items()}
            rows = len(inputs["input_ids"])
            outputs = {present_name(*part): inputs[past_name(*part)] for part in layer_parts(config.language.layers)}
            outputs["logits"] = np.empty((rows, 3, config.language.vocab_size), np.float32)
            backend.bind(LANGUAGE_MODEL, inputs, outputs)()
            logits.append((outputs["logits"][0], inputs[past_name(1, "key")][0, :, :7]))
        for found, expected in zip(*logits, strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_engines_in_half_precision_give_its_tokens(runner, bundles, pictures) -> None:
    bundle = bundles["tensorrt-fp16"]
    cpu = model_of(
        OrtBackend({name: bundle.graph_path(name) for name in bundle.graphs}, bundle.config, 1, dtype=bundle.compute),
        bundle,
    )
    for options in ({}, {"speculation": 0}, {"beams": 3}):
        found, expected = (
            model.generate([pictures[0], "Output:"], max_new_tokens=12, **options).result()
            for model in (runner.model("tensorrt-fp16"), cpu)
        )
        assert_same([found], [expected])


def test_a_step_is_captured_on_its_second_run_and_then_replayed(runner, gpu, text) -> None:
    runner.model("tensorrt").generate(text, max_new_tokens=6, speculation=0).result()
    executed = gpu.called("execute")
    language = [call for call in executed if call[1] == LANGUAGE_MODEL]
    assert len(language) == 3, "the prompt, one step, one capture; all else is replayed"
    assert [profile for *_, profile in language[1:]] == [1, 1], "steps take what was compiled for them"
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
    gpu.failures["cuStreamEndCapture"] = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
    found, expected = (
        model.generate(text, max_new_tokens=6, speculation=0).result() for model in (runner.model("tensorrt"), ort)
    )
    assert_same([found], [expected])
    assert len(gpu.called("begin capture")) == 1
    assert not gpu.called("launch")


def test_without_cuda_graphs_every_step_is_run_as_it_is(runner, gpu, ort, text) -> None:
    engines = runner.engines("tensorrt")
    backend = TensorRtBackend(runner.bundles["tensorrt"], engines, import_tensorrt("tensorrt"), cuda_graphs=False)
    model = model_of(backend, runner.bundles["tensorrt"])
    found, expected = (each.generate(text, max_new_tokens=6).result() for each in (model, ort))
    assert_same([found], [expected])
    assert not gpu.called("begin capture")


def test_media_is_uploaded_once(runner, gpu, pictures, monkeypatch) -> None:
    uploads, upload = [], Cuda.upload
    monkeypatch.setattr(Cuda, "upload", lambda self, address, array: (uploads.append(array.shape), upload(
        self, address, array)))
    model = runner.model("tensorrt")
    model.generate([pictures[0], "Output:"], max_new_tokens=8, speculation=0).result()
    media = (1, 2, 5, 16)
    layers = len(model.config.cross_layers)
    assert uploads.count(media) == 2 * 2 * layers, "keys and values, for the prompt and for all steps"


def test_memory_is_given_back_with_the_model(runner, gpu) -> None:
    model = runner.model("tensorrt")
    assert gpu.used == 0
    for rows in (1, 2, 2):
        model.generate_batch(["Output:"] * rows, max_new_tokens=6)
        cache = rows * 96 * 6 * 64
        assert cache <= gpu.used < 2 * cache, "one cache is kept"
    with without_collector():
        del model
        assert gpu.used == 0


def test_too_little_memory_says_what_would_fit(runner, gpu) -> None:
    model = runner.model("tensorrt")
    gpu.memory = gpu.used + 3 * 96 * 6 * 64 + 10_000
    with pytest.raises(DataError, match=r"cache of 4 rows of 96 tokens, 0\.1 MB in all, .*; 3 of these rows would fit"):
        model.backend.cache(4, 96)
    gpu.memory = gpu.used + 10 * 6 * 64
    with pytest.raises(DataError, match=r"10 tokens would fit: flamingo-rt build --capacity"):
        model.backend.cache(1, 96)


@pytest.mark.parametrize(("limits", "parts", "message"), [
    (replace(LIMITS, tokens=4), "Output: a red circle and a blue square", r"input_ids is \[1, \d+\], from \[1, 1\]"),
    (replace(LIMITS, batch=1), None, r"input_ids is \[2, \d+\]"),
    (replace(LIMITS, capacity=8), "Output: a red circle and a blue square", r"tokens are asked for, .* holds 8"),
])
def test_sizes_that_were_not_compiled_are_refused_with_the_command(runner, limits, parts, message) -> None:
    model = runner.model("tensorrt", limits=limits)
    prompts = ["Output:", "Output:"] if parts is None else [parts]
    with pytest.raises(DataError, match=f"{message}.*flamingo-rt build"):
        model.generate_batch(prompts, max_new_tokens=8)


def test_a_file_that_is_no_engine_is_refused_with_the_command(runner) -> None:
    engines = runner.engines("tensorrt")
    engines.engine_path(VISION_ENCODER).write_bytes(b"\0damaged")
    with pytest.raises(DataError, match=r"vision_encoder.engine cannot be loaded \(no magic tag\).*flamingo-rt build"):
        TensorRtBackend(runner.bundles["tensorrt"], engines, import_tensorrt("tensorrt"))


@pytest.mark.parametrize(("old", "new"), [('"input_ids"', '"input_id"'), ('"FLOAT"', '"HALF"'), ("300", "301")])
def test_an_engine_of_another_model_is_refused(runner, old, new) -> None:
    engines = runner.engines("tensorrt")
    path = engines.engine_path(LANGUAGE_MODEL)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match="does not fit the configuration"):
        TensorRtBackend(runner.bundles["tensorrt"], engines, import_tensorrt("tensorrt"))


@pytest.mark.parametrize("function", ["cuEventSynchronize", "cuGraphLaunch"])
def test_what_cuda_says_of_a_run_is_an_error_with_a_remedy(runner, gpu, text, function) -> None:
    """A wrong access shows at a later call: where the host waits, or where the next CUDA graph is launched."""
    model = runner.model("tensorrt")
    gpu.failures[function] = "CUDA_ERROR_ILLEGAL_ADDRESS"
    with pytest.raises(DataError, match=rf"the GPU failed in a run of the model: {function} failed: .*--backend ort"):
        model.generate(text, max_new_tokens=8).result()
