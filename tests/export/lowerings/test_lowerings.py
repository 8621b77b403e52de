"""The lowerings for TensorRT compute what PyTorch computes, in the operators TensorRT takes."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import onnx
import pytest
from language_kinds import LANGUAGES
from small_model import TEXTS, small_config, small_flamingo

import flamingo_rt
from flamingo_rt import Image
from flamingo_rt.bundle import Bundle
from flamingo_rt.checkpoints import open_checkpoint, save_checkpoint
from flamingo_rt.config import FlamingoConfig, TokensConfig, ViTConfig
from flamingo_rt.contract import APPENDED, GRAPHS, IN_PLACE, LANGUAGE_MODEL, graph_specs
from flamingo_rt.engines.ort import OrtBackend
from flamingo_rt.errors import ParityError, UsageError
from flamingo_rt.export.checks.parity import check_parity
from flamingo_rt.export.checks.parity_cases import compute_reference
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.training.tokenizer_training import train_tokenizer

LOWERINGS = ("tensorrt", "tensorrt-classic")
HALVES = ["fp16", pytest.param("bf16", marks=pytest.mark.slow)]
# Of each form of positions, a bias of the scores and none, one in every run; tracing takes most of these tests' time.
OFTEN = {("alibi", "tensorrt"), ("alibi", "tensorrt-classic"), ("rotary", "tensorrt")}
# Graphs in half precision are compared upcast. They hold the factor of the scores rounded.
TOLERANCE = {"fp32": 2e-5, "fp16": 5e-4, "bf16": 4e-3}


def config_with(language: dict) -> FlamingoConfig:
    config = small_config()
    vision = ViTConfig(image_size=28, patch_size=14, width=32, layers=1, heads=2, ff_width=48)
    return replace(config, vision=vision, language=replace(config.language, layers=2, **language))


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory):
    """A small model with a language model of a kind as a bundle; made once for each combination."""
    made: dict[tuple[str, str, str], Bundle] = {}
    folder = tmp_path_factory.mktemp("lowerings")

    def bundle(kind: str, lowering: str, compute: str) -> Bundle:
        if (kind, lowering, compute) not in made:
            checkpoint, config = folder / kind, config_with(LANGUAGES[kind])
            if not checkpoint.exists():
                tokenizer = train_tokenizer(TEXTS, config.language.vocab_size, TokensConfig())
                save_checkpoint(checkpoint, small_flamingo(config), tokenizer.to_str())
            made[kind, lowering, compute] = export_model(
                open_checkpoint(checkpoint), folder / f"{kind} {lowering} {compute}", lowering=lowering,
                compute=compute, tolerance=TOLERANCE[compute],
            )
        return made[kind, lowering, compute]

    return bundle


def language_engine(bundle: Bundle) -> OrtBackend:
    return OrtBackend({LANGUAGE_MODEL: bundle.graph_path(LANGUAGE_MODEL)}, bundle.config, cache=bundle.cache_form)


def nodes(bundle: Bundle, name: str) -> tuple[onnx.ModelProto, list[str]]:
    model = onnx.load(bundle.graph_path(name), load_external_data=False)
    return model, [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(("kind", "lowering"), [
    pytest.param(*pair, marks=() if pair in OFTEN else pytest.mark.slow) for pair in product(LANGUAGES, LOWERINGS)
])
def test_prefill_continuation_and_ragged_decoding_equal_pytorch(export, kind: str, lowering: str) -> None:
    parity = export(kind, lowering, "fp32").parity
    assert set(parity) == set(GRAPHS)
    assert all(0 < value < TOLERANCE["fp32"] for value in parity.values())


@pytest.mark.parametrize(("lowering", "compute"), [
    ("tensorrt", "fp16"), ("tensorrt-classic", "fp16"), pytest.param("tensorrt", "bf16", marks=pytest.mark.slow),
])
@pytest.mark.parametrize("kind", [
    "alibi", *(pytest.param(kind, marks=pytest.mark.slow) for kind in LANGUAGES if kind != "alibi"),
])
def test_a_graph_in_half_precision_equals_pytorch_but_for_rounding(
    export, kind: str, compute: str, lowering: str
) -> None:
    parity = export(kind, lowering, compute).parity
    assert all(0 < value < TOLERANCE[compute] for value in parity.values())


def test_a_type_that_a_lowering_has_no_operators_for_is_refused(export) -> None:
    with pytest.raises(UsageError, match="tensorrt-classic cannot compute in bfloat16; known: float32, float16"):
        export("alibi", "tensorrt-classic", "bf16")


@pytest.mark.parametrize("compute", HALVES)
def test_the_tensorrt_graphs_have_fused_operators_in_half_precision(export, compute: str) -> None:
    bundle = export("alibi", "tensorrt", compute)
    model, operators = nodes(bundle, LANGUAGE_MODEL)
    layers = bundle.config.language.layers
    assert operators.count("TensorScatter") == 2 * layers
    assert operators.count("Attention") == layers + len(bundle.config.cross_layers)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 24)]
    for name in ("vision_encoder", "resampler"):
        assert "Attention" in nodes(bundle, name)[1]


def test_a_float32_tensorrt_graph_has_no_attention_operator(export) -> None:
    operators = nodes(export("alibi", "tensorrt", "fp32"), LANGUAGE_MODEL)[1]
    assert "TensorScatter" in operators
    assert "Attention" not in operators


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_the_classic_graphs_are_valid_in_opset_17_and_have_no_newer_operator(export, graph: str, dtype: str) -> None:
    bundle = export("alibi", "tensorrt-classic", dtype)
    model, operators = nodes(bundle, graph)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    onnx.checker.check_model(str(bundle.graph_path(graph)))
    assert not {"Gelu", "Attention", "TensorScatter", "RMSNormalization", "If", "Loop", "Scan"} & set(operators)


@pytest.mark.parametrize(("lowering", "cache"), [("tensorrt", IN_PLACE), ("tensorrt-classic", APPENDED)])
@pytest.mark.parametrize(("dtype", "named"), [("fp32", "float32"), ("fp16", "float16")])
def test_the_graphs_have_the_contracts_interface(export, lowering: str, cache: str, dtype: str, named: str) -> None:
    bundle = export("alibi", lowering, dtype)
    for name, spec in graph_specs(bundle.config, named, cache).items():
        graph = nodes(bundle, name)[0].graph
        for values, tensors in ((graph.input, spec.inputs), (graph.output, spec.outputs)):
            for value, tensor in zip(values, tensors, strict=True):
                dimensions = value.type.tensor_type.shape.dim
                assert value.name == tensor.name
                assert tuple(d.dim_param or d.dim_value for d in dimensions) == tensor.shape
                found = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
                assert found == np.dtype(tensor.dtype), value.name


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_a_cache_that_is_one_token_off_is_found(export, lowering: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison sees through the copies that are made for a graph of another form."""
    bundle = export("alibi", lowering, "fp32")
    backend = language_engine(bundle)
    bind = backend._bind

    def off(graph: str, inputs: dict, outputs: dict):
        return bind(graph, {**inputs, "cache_length": np.maximum(inputs["cache_length"] - 1, 0)}, outputs)

    monkeypatch.setattr(backend, "_bind", off)
    reference = compute_reference(small_flamingo(bundle.config))
    with pytest.raises(ParityError, match="tensor logits"):
        check_parity(reference, backend, bundle.config, graphs=(LANGUAGE_MODEL,))


def test_unused_slots_of_the_cache_are_not_looked_at(export) -> None:
    for lowering, cache in (("tensorrt", IN_PLACE), ("tensorrt-classic", APPENDED)):
        bundle = export("alibi", lowering, "fp32")
        backend = language_engine(bundle)
        spec, answers = graph_specs(bundle.config, cache=cache)[LANGUAGE_MODEL], []
        for fill in (0.0, 100.0):
            generator = np.random.default_rng(0)
            sizes = {"B": 2, "S": 5, "T": 3, "K": 3, "C": 9}
            inputs = {
                tensor.name: generator.standard_normal(tensor.resolve(sizes), dtype=np.float32)
                if tensor.dtype == "float32" else np.ones(tensor.resolve(sizes), dtype=tensor.dtype)
                for tensor in spec.inputs
            }
            inputs["cache_length"][:] = (4, 2)
            for name in (tensor.name for tensor in spec.inputs if "C" in tensor.shape):
                for row, length in enumerate((4, 2)):
                    slots = inputs[name][length:, row] if cache == APPENDED else inputs[name][row, :, length:]
                    slots[:] = fill
            outputs = {tensor.name: np.zeros(tensor.resolve(sizes), tensor.dtype) for tensor in spec.outputs}
            backend._bind(LANGUAGE_MODEL, inputs, outputs)()
            answers.append(outputs["logits"])
        assert np.abs(answers[0]).max() > 0.1
        np.testing.assert_allclose(answers[0], answers[1], rtol=0, atol=1e-5)


def test_all_lowerings_answer_alike(export) -> None:
    """Answer through the runtime: shots that were read before, beams, guessed tokens, a ragged batch."""
    picture = Image(np.random.default_rng(1).integers(0, 256, (30, 30, 3), np.uint8))
    answers = []
    for lowering in ("ort", *LOWERINGS):
        model = flamingo_rt.load(export("alibi", lowering, "fp32").path)
        shots = model.prompt([picture, "Output: a red circle<|endofchunk|>"])
        asked = [picture, "Output:"]
        batch = model.generate_batch([asked, "Question: how many stars?"], prefix=shots, max_new_tokens=9)
        answers.append([
            model.generate(asked, prefix=shots, max_new_tokens=20).result().tokens,
            model.generate(asked, max_new_tokens=20, speculation=0).result().tokens,
            model.generate(asked, prefix=shots, max_new_tokens=9, beams=3).result().tokens,
            *(row.tokens for row in batch),
        ])
    assert len({tuple(row) for row in answers[0]}) > 1
    assert answers[0] == answers[1] == answers[2]
