"""Bundles that compute in half precision: what they hold, what they are compared with, what they cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_model import TEXTS, small_flamingo

import flamingo_rt
from flamingo_rt.bundle import read_bundle
from flamingo_rt.checkpoints import StoredModel, open_checkpoint, save_checkpoint
from flamingo_rt.config import (
    CrossAttentionConfig,
    FlamingoConfig,
    LanguageConfig,
    ResamplerConfig,
    TokensConfig,
    ViTConfig,
)
from flamingo_rt.contract import GRAPHS, LANGUAGE_MODEL, graph_specs
from flamingo_rt.engines.ort import OrtBackend
from flamingo_rt.errors import ParityError, UsageError
from flamingo_rt.export.checks.half_precision import RoundedConstants, compared_with, in_half
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.export.quantization.quantization_options import Quantize
from flamingo_rt.processing.visuals import Image
from flamingo_rt.runtime.batch_memory import needed_bytes
from flamingo_rt.training.tokenizer_training import train_tokenizer
from flamingo_rt.weights.lazy import LazyTensor

DTYPES = {"fp16": "float16", "bf16": "bfloat16"}
CONFIG = FlamingoConfig(
    name="half",
    vision=ViTConfig(image_size=16, patch_size=4, width=24, layers=1, heads=2, ff_width=32, activation="gelu"),
    resampler=ResamplerConfig(width=24, layers=1, heads=2, head_width=8, latents=3, max_frames=4),
    cross_attention=CrossAttentionConfig(interval=1, heads=2, head_width=16, norm="layernorm", activation="gelu"),
    language=LanguageConfig(
        vocab_size=300, width=32, layers=2, heads=4, kv_heads=4, head_width=8, ff_width=48, context=600,
        positions="alibi", norm="layernorm", activation="gelu",
    ),
    max_visuals=6,
)


@pytest.fixture(scope="module")
def checkpointed(tmp_path_factory: pytest.TempPathFactory) -> StoredModel:
    tokenizer = train_tokenizer(TEXTS, 300, TokensConfig()).to_str()
    folder = tmp_path_factory.mktemp("half") / "checkpoint"
    save_checkpoint(folder, small_flamingo(CONFIG), tokenizer)
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def halves(checkpointed: StoredModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle that computes in fp16 or bf16."""
    made: dict[str, Path] = {}

    def bundle(compute: str) -> Path:
        if compute not in made:
            made[compute] = tmp_path_factory.mktemp(compute) / "bundle"
            export_model(checkpointed, made[compute], compute=compute)
        return made[compute]

    return bundle


@pytest.mark.parametrize("compute", DTYPES)
def test_weights_cache_and_media_are_half_and_pixels_and_logits_are_not(halves, compute: str) -> None:
    half = onnx.TensorProto.DataType.Value(DTYPES[compute].upper())
    for name, spec in graph_specs(CONFIG, DTYPES[compute]).items():
        graph = onnx.load(halves(compute) / f"{name}.onnx", load_external_data=False).graph
        matrices = {tensor.data_type for tensor in graph.initializer if np.prod(tensor.dims) > 64}
        assert matrices == {half}, name
        for values, tensors in ((graph.input, spec.inputs), (graph.output, spec.outputs)):
            kinds = {value.name: value.type.tensor_type.elem_type for value in values}
            assert kinds == {t.name: onnx.TensorProto.DataType.Value(
                {"float32": "FLOAT"}.get(t.dtype, t.dtype.upper())) for t in tensors}


@pytest.mark.parametrize("compute", DTYPES)
def test_the_recorded_deviation_is_that_of_the_rounded_weights(halves, compute: str) -> None:
    bundle = read_bundle(halves(compute))
    assert bundle.compute == DTYPES[compute]
    assert {entry.dtype for entry in bundle.graphs.values()} == {DTYPES[compute]}
    assert set(bundle.parity) == set(GRAPHS)
    assert all(0 < value < 2e-5 for value in bundle.parity.values()), bundle.parity


@pytest.mark.parametrize("compute", DTYPES)
def test_what_half_precision_costs_is_measured(halves, compute: str) -> None:
    unit, rounding = torch.finfo(getattr(torch, DTYPES[compute])).eps, read_bundle(halves(compute)).rounding
    assert set(rounding) == set(GRAPHS)
    assert all(0.1 * unit < value < 200 * unit for value in rounding.values()), rounding


def test_no_file_of_the_comparison_is_left(halves) -> None:
    names = {f"{name}.onnx{part}" for name in GRAPHS for part in ("", ".data")}
    others = {"manifest.json", "reference.npz", "tokenizer.json"}
    assert {file.name for file in halves("bf16").iterdir()} == names | others


@pytest.fixture
def picture() -> Image:
    return Image(np.random.default_rng(3).integers(0, 256, (20, 24, 3), dtype=np.uint8))


def test_an_fp16_bundle_answers_as_the_rounded_model_does(halves, checkpointed: StoredModel, picture, tmp_path) -> None:
    # Greedy tokens could be ties, which rounding decides; scores are compared instead.
    model = flamingo_rt.load(halves("fp16"))
    rounded = compared_with(in_half(checkpointed, torch.float16), torch.float16)
    save_checkpoint(tmp_path / "rounded", rounded.load(), checkpointed.tokenizer)
    oracle = flamingo_rt.load(tmp_path / "rounded")
    prompt = [picture, "Output: a red", picture, "Question:"]
    found, expected = (m.score(prompt, [" red", " two", " a blue square"]) for m in (model, oracle))
    assert [score.text for score in found] == [score.text for score in expected]
    np.testing.assert_allclose([s.logprob for s in found], [s.logprob for s in expected], atol=0.05)


def test_a_prompt_of_an_fp16_bundle_is_kept_in_a_file(halves, picture, tmp_path) -> None:
    model = flamingo_rt.load(halves("fp16"))
    shots = model.prompt([picture, "Output: a red circle<|endofchunk|>"])
    shots.save(tmp_path / "shots.prompt")
    with np.load(tmp_path / "shots.prompt") as file:
        assert {file[name].dtype for name in file if "." in name} == {np.dtype(np.float16)}
    read = flamingo_rt.load(halves("fp16")).load_prompt(tmp_path / "shots.prompt")
    asked = [picture, "Output:"]
    answers = [m.generate(asked, prefix=p, max_new_tokens=8).result().tokens
               for m, p in ((model, shots), (read._owner, read))]
    assert answers[0] == answers[1]


def test_bf16_is_refused_on_cpus_with_what_to_do(halves) -> None:
    with pytest.raises(UsageError, match=r"no CPU kernels .* bf16: export with --compute fp32"):
        flamingo_rt.load(halves("bf16"))


def test_the_bits_of_bfloat16_stand_in_arrays_of_numpy() -> None:
    spec = graph_specs(CONFIG, "bfloat16")[LANGUAGE_MODEL].input("past_key_values.0.key")
    assert (spec.dtype, spec.array_dtype) == ("bfloat16", "uint16")


def test_the_cache_takes_half_the_memory() -> None:
    full, half = (needed_bytes(graph_specs(CONFIG, dtype), 1, 10_000, 1) for dtype in ("float32", "bfloat16"))
    assert 0.5 < half / full < 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [({"compute": "fp8"}, "unknown compute 'fp8'; known: fp32, fp16, bf16"),
     ({"compute": "fp16", "dtype": "bf16"}, "compute in fp16 hold their weights in fp16: leave out bf16")],
)
def test_types_that_do_not_go_together_are_refused(checkpointed: StoredModel, tmp_path, options, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        export_model(checkpointed, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_the_comparison_multiplies_with_the_constants_that_a_graph_holds() -> None:
    x, gain = torch.ones(3), 1.7015043497085571
    rounded = torch.tensor(gain).half().float()
    with RoundedConstants(torch.float16):
        assert all(torch.equal(product, x * rounded) for product in (x * gain, gain * x, x.mul(gain)))
    assert not torch.equal(x * gain, x * rounded)


def multiplied(tensor: LazyTensor, factor: float) -> LazyTensor:
    return LazyTensor(tensor.shape, tensor.dtype, tensor.file, lambda: tensor.read() * factor)


@pytest.mark.parametrize(
    "options", [{}, {"lowering": "tensorrt", "quantize": Quantize("int8")}], ids=["plain", "quantized"]
)
def test_numbers_too_large_for_fp16_are_refused_with_the_remedy(checkpointed: StoredModel, tmp_path, options) -> None:
    # The numbers are too large between these two matrices, and usual again behind them.
    large = dict(checkpointed.tensors)
    for part, factor in (("up", 3e4), ("down", 1 / 3e4)):
        name = f"language.layers.1.ff.{part}.weight"
        large[name] = multiplied(large[name], factor)
    with pytest.raises(ParityError, match=r"graph language_model, .* too large for torch.float16 .*--compute bf16"):
        export_model(replace(checkpointed, tensors=large), tmp_path / "out", compute="fp16", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("compute", DTYPES)
def test_a_wrong_weight_is_found(checkpointed: StoredModel, monkeypatch, tmp_path, compute: str) -> None:
    import flamingo_rt.export.pipeline as pipeline

    bind = pipeline.Weights.bind

    def spoilt(self, model) -> None:
        name = "language.layers.1.ff.down.weight"
        bind(replace(self, tensors={**self.tensors, name: multiplied(self.tensors[name], 1.5)}), model)

    monkeypatch.setattr(pipeline.Weights, "bind", spoilt)
    with pytest.raises(ParityError, match="graph language_model, tensor"):
        export_model(checkpointed, tmp_path / "out", compute=compute)


def test_an_engine_takes_arrays_of_its_own_type_alone(halves) -> None:
    bundle = read_bundle(halves("fp16"))
    backend = OrtBackend({name: bundle.graph_path(name) for name in GRAPHS}, CONFIG, dtype="float16")
    spec = backend.specs["resampler"]
    features = np.zeros(spec.inputs[0].resolve({"M": 1, "F": 1}), dtype=np.float32)
    outputs = {out.name: np.zeros(out.resolve({"M": 1}), dtype=out.array_dtype) for out in spec.outputs}
    with pytest.raises(ValueError, match="features must be a C-contiguous float16 array"):
        backend.bind("resampler", {"features": features}, outputs)
