"""ONNX Runtime on CUDA, on stand-ins for onnxruntime-gpu and PyCUDA: the CPU's tokens, and what it asks of the two.

`fake_gpu.py` and `fake_onnxruntime.py` say what the stand-ins check, and what they cannot show.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from runners import assert_same, without_collector

from flamingo_rt.contract import LANGUAGE_MODEL, RESAMPLER, graph_specs, layer_parts, past_name
from flamingo_rt.engines.gpu.bound_arrays import BoundArrays, GraphInterface
from flamingo_rt.engines.ort_gpu import HOST_OPERATORS, BoundSession, CudaProvider
from flamingo_rt.errors import DataError, DependencyError, UsageError

# What a stand-in finds when Python frees its memory is a warning otherwise.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(params=["ort-fp16", "tensorrt"])
def models(request, on_cuda, ort, ort_half):
    """Models on the stand-in, each with its twin on the CPU in the same type: half precision and float32."""
    if request.param == "tensorrt":
        on_cuda.runtime.on_host = set()  # graphs of this lowering read nothing there
    return on_cuda.model(request.param), ort_half if request.param == "ort-fp16" else ort


class TestSameTokensAsTheCpu:
    def test_of_one_row_with_pictures(self, models, pictures) -> None:
        parts = [pictures[0], "Output: a red", pictures[1], "Output:"]
        for options in ({}, {"speculation": 0}, {"temperature": 1.0, "seed": 3}, {"beams": 3}):
            found, expected = (model.generate(parts, max_new_tokens=12, **options).result() for model in models)
            assert_same([found], [expected])

    def test_of_rows_of_several_lengths_behind_a_prefix(self, models, pictures) -> None:
        queries = [[pictures[1], "Output:"], "Question: how many? Answer:", "Output: a"]
        found, expected = (
            model.generate_batch(
                queries, prefix=model.prompt([pictures[0], "Output: two stars"]), max_new_tokens=8
            )
            for model in models
        )
        assert_same(found, expected)

    def test_of_choices(self, models, pictures) -> None:
        scores = [
            {score.text: score.logprob for score in model.score([pictures[0], "Output:"], ["red", "a blue square"])}
            for model in models
        ]
        assert scores[0] == pytest.approx(scores[1], abs=1e-3)

    def test_in_numpy_arrays_of_the_contract(self, models) -> None:
        """Arrays as the comparison of an export with PyTorch binds them."""
        config, results = models[0].config, []
        for model in models:
            spec = model.backend.specs[LANGUAGE_MODEL]
            sizes, rng = {"B": 1, "T": 3, "K": 3, "S": config.resampler.latents, "C": 96}, np.random.default_rng(1)
            inputs = {
                tensor.name: rng.standard_normal(tensor.resolve(sizes)).astype(tensor.array_dtype)
                if tensor.dtype != "int64" else np.ones(tensor.resolve(sizes), np.int64) for tensor in spec.inputs
            }
            outputs = {
                tensor.name: inputs[tensor.name.replace("present", "past_key_values")]
                if "C" in tensor.shape else np.empty(tensor.resolve(sizes), tensor.array_dtype)
                for tensor in spec.outputs
            }
            model.backend.bind(LANGUAGE_MODEL, inputs, outputs)()
            results.append((outputs["logits"], inputs[past_name(1, "key")][0, :, :4]))
        for found, expected in zip(*results, strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_inputs_are_bound_where_the_graph_reads_them(on_cuda, gpu, text, ort_half) -> None:
    model = on_cuda.model("ort-fp16")
    found, expected = (each.generate(text, max_new_tokens=6).result() for each in (model, ort_half))
    assert_same([found], [expected])
    session = next(session for session in on_cuda.runtime.sessions if session.graph == LANGUAGE_MODEL)
    devices = {name: device for name, (device, *_) in session.bindings[0].inputs.items()}
    assert [name for name, device in devices.items() if device == "cpu"] == ["cache_length"]
    on_cuda.runtime.on_host = {"input_ids", "cache_length", "media_index", "logits_index"}
    again = on_cuda.model("ort-fp16").generate(text, max_new_tokens=6).result()
    assert_same([again], [expected])


def test_a_step_whose_token_the_host_chooses_waits_once(on_cuda, gpu, text) -> None:
    counts = []
    for tokens in (3, 6):
        gpu.calls.clear()
        on_cuda.model("ort-fp16").generate(text, max_new_tokens=tokens, speculation=0, repetition_penalty=1.1).result()
        counts.append((len(gpu.called("execute")), len(gpu.called("synchronize"))))
    (runs, waits), (more_runs, more_waits) = counts
    assert more_runs - runs == more_waits - waits > 0


def test_past_and_present_are_the_same_memory(on_cuda) -> None:
    on_cuda.model("ort-fp16").generate("Output:", max_new_tokens=2).result()
    session = next(session for session in on_cuda.runtime.sessions if session.graph == LANGUAGE_MODEL)
    for binding in session.bindings:
        for layer, part in layer_parts(3):
            past, present = binding.inputs[past_name(layer, part)], binding.outputs[f"present.{layer}.{part}"]
            assert past[:3] == present[:3]


def test_an_output_that_is_left_out_stays_on_the_device(on_cuda, gpu, runner, pictures) -> None:
    for backend in (on_cuda.backend("ort-fp16"), runner.backend("tensorrt")):
        spec = backend.specs[RESAMPLER]
        sizes = {"M": 1, "F": 1}
        features = np.ones(spec.inputs[0].resolve(sizes), spec.inputs[0].array_dtype)
        whole = {tensor.name: np.empty(tensor.resolve(sizes), tensor.array_dtype) for tensor in spec.outputs}
        part = {name: np.empty_like(whole[name]) for name in list(whole)[:1]}
        backend.bind(RESAMPLER, {"features": features}, whole)()
        run = backend.bind(RESAMPLER, {"features": features}, part)
        run()
        for name, array in whole.items():
            kept = gpu.bytes_at(run.arrays.addresses[name], array.nbytes).view(array.dtype).reshape(array.shape)
            np.testing.assert_array_equal(kept, array)
        np.testing.assert_array_equal(part[next(iter(part))], whole[next(iter(part))])


def test_the_parts_of_a_run_can_be_called_one_by_one(on_cuda, gpu) -> None:
    backend = on_cuda.backend("ort-fp16")
    spec = backend.specs[RESAMPLER]
    features = np.zeros(spec.inputs[0].resolve({"M": 1, "F": 1}), spec.inputs[0].array_dtype)
    name = spec.outputs[0].name
    found = np.zeros(spec.outputs[0].resolve({"M": 1}), spec.outputs[0].array_dtype)
    run = backend.bind(RESAMPLER, {"features": features}, {name: found}, constant=("none",))
    with backend._cuda.current():
        features[:] = 1
        run.arrays.stage()
        features[:] = 5  # too late for this run
        run.graph.enqueue()
        assert not found.any(), "nothing is there before the stream is waited for"
        backend._cuda.synchronize()
        run.arrays.collect()
    expected = np.zeros_like(found)
    features[:] = 1
    backend.bind(RESAMPLER, {"features": features}, {name: expected})()
    np.testing.assert_array_equal(found, expected)
    assert found.any()


def test_memory_is_given_back_with_the_model(on_cuda, gpu) -> None:
    model = on_cuda.model("ort-fp16")
    model.generate("Output:", max_new_tokens=6).result()
    on_cuda.runtime.sessions.clear()
    assert gpu.used, "the cache is kept"
    with without_collector():
        del model
        assert gpu.used == 0


def test_bfloat16_is_bound_by_its_number(on_cuda, gpu, ort) -> None:
    """The CPU has no kernels for it, so nothing is computed."""
    spec, kinds = graph_specs(ort.config, "bfloat16")[RESAMPLER], []
    binding = SimpleNamespace(
        bind_input=lambda name, device, index, kind, shape, address: kinds.append(kind),
        bind_output=lambda name, device, index, kind, shape, address: kinds.append(kind),
    )
    dtypes = {tensor.name: np.dtype(tensor.array_dtype) for tensor in (*spec.inputs, *spec.outputs)}
    arrays = {
        tensor.name: np.zeros(tensor.resolve({"M": 1, "F": 1}), np.uint16) for tensor in (*spec.inputs, *spec.outputs)
    }
    backend = on_cuda.backend("ort-fp16")
    with backend._cuda.current():
        bound = BoundArrays(
            backend._cuda, backend._cuda.allocate, GraphInterface(spec, dtypes), arrays, arrays, constant=()
        )
        BoundSession(SimpleNamespace(io_binding=lambda: binding), CudaProvider(), bound)
    assert set(kinds) == {16}


def test_doctor_multiplies_on_the_gpu(on_cuda) -> None:
    from flamingo_rt.cli.doctor import _try_ort_gpu

    assert _try_ort_gpu("ort-cuda") == "onnxruntime 1.31.1, CUDA, Fake; runs bundles of ort and tensorrt"


# What does not run


def test_a_graph_with_nodes_that_cuda_has_no_kernels_for_is_refused(on_cuda) -> None:
    on_cuda.runtime.without_kernels |= {"GroupQueryAttention"}
    with pytest.raises(DataError, match=r"leaves to the CPU: 3 GroupQueryAttention; export with --compute fp16"):
        on_cuda.backend("ort-fp16")


def test_nodes_on_shapes_and_positions_may_run_on_the_cpu(on_cuda, ort_half, text) -> None:
    on_cuda.runtime.without_kernels |= HOST_OPERATORS
    found, expected = (
        each.generate(text, max_new_tokens=6).result() for each in (on_cuda.model("ort-fp16"), ort_half)
    )
    assert_same([found], [expected])


def test_a_provider_that_does_not_start_is_an_error(on_cuda) -> None:
    on_cuda.runtime.starts = False
    with pytest.raises(DependencyError, match=r"CUDA does not start .* would run the graph on CPUExecutionProvider"):
        on_cuda.backend("ort-fp16")


def test_onnxruntime_without_cuda_names_the_extra(on_cuda) -> None:
    on_cuda.runtime.available = ["CPUExecutionProvider"]
    with pytest.raises(DependencyError, match=r"has no CUDA: .*flamingo-rt\[gpu\]"):
        on_cuda.backend("ort-fp16")


def test_without_a_gpu_it_says_so(on_cuda, monkeypatch) -> None:
    monkeypatch.setattr("flamingo_rt.engines.gpu.nvidia_driver.find_gpu", lambda: None)
    with pytest.raises(DependencyError, match="no NVIDIA GPU is found: the ort-cuda backend needs one"):
        on_cuda.backend("ort-fp16")


def test_a_gpu_that_does_not_start_is_an_error_that_auto_passes_over(on_cuda, gpu, monkeypatch) -> None:
    driver = sys.modules["pycuda.driver"]

    def full(self):
        raise driver.Error("cuDevicePrimaryCtxRetain failed: out of memory")

    monkeypatch.setattr(driver.Device, "retain_primary_context", full)
    with pytest.raises(DependencyError, match=r"does not start on the GPU .*out of memory.*nvidia-smi"):
        on_cuda.backend("ort-fp16")


def test_without_pycuda_it_is_said_what_to_install(on_cuda, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(DependencyError, match=r"flamingo-rt\[cuda\]"):
        on_cuda.backend("ort-fp16")


def test_libraries_that_do_not_load_are_named(on_cuda, tmp_path) -> None:
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").write_bytes(b"no library")
    on_cuda.runtime.__file__ = str(tmp_path / "__init__.py")
    with pytest.raises(DependencyError, match=r"CUDA kernels do not load \(.*libonnxruntime_providers_cuda.so"):
        on_cuda.backend("ort-fp16")


def test_what_loading_libraries_prints_does_not_get_into_the_answer(on_cuda, capsys) -> None:
    on_cuda.runtime.preload_dlls = lambda: print("Failed to load libcudnn.so.9")
    on_cuda.backend("ort-fp16")
    assert capsys.readouterr().out == ""


def test_graphs_that_append_to_the_cache_are_refused(on_cuda) -> None:
    with pytest.raises(UsageError, match=r"--lowering tensorrt-classic, .*: export with --lowering ort or tensorrt"):
        on_cuda.backend("tensorrt-classic")


@pytest.mark.parametrize(("said", "remedy"), [
    ("Failed to allocate memory for requested buffer of size 4096", "the GPU has too little memory"),
    ("attention_bias is not supported", "run it with --backend ort"),
])
def test_a_run_that_fails_says_what_onnx_runtime_said(on_cuda, gpu, said, remedy) -> None:
    model = on_cuda.model("ort-fp16")
    on_cuda.runtime.failure = RuntimeError(said)
    with pytest.raises(DataError, match=rf"cannot run the language_model with CUDA: {said}; {remedy}"):
        model.generate("Output:", max_new_tokens=4).result()


def test_a_cache_that_does_not_fit_says_what_would(on_cuda, gpu) -> None:
    backend = on_cuda.backend("ort-fp16")
    gpu.memory = gpu.used + 10 * 6 * 32
    with pytest.raises(DataError, match=r"10 tokens would fit: use fewer shots or a smaller max_new_tokens"):
        backend.cache(1, 96)


def test_a_batch_is_checked_against_the_memory_of_the_gpu(on_cuda, gpu) -> None:
    model = on_cuda.model("ort-fp16")
    gpu.memory = gpu.used + 100_000
    with pytest.raises(DataError, match=r"\d+ rows of .* in memory on the GPU: .* 0\.1 MB are available; \d+ of these"):
        model.generate_batch(["Output:"] * 64, max_new_tokens=8)
    gpu.memory = 1 << 30
    assert model.backend.available_bytes() == gpu.memory - gpu.used


def test_memory_that_is_the_machines_own_is_counted_as_such(on_cuda, gpu) -> None:
    gpu.integrated = True
    assert on_cuda.backend("ort-fp16").available_bytes() is None
