"""Quantized graphs for TensorRT: a DequantizeLinear before each product, computed by ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import PIL.Image
import pytest
from onnx import helper, numpy_helper
from small_model import TEXTS, small_config, small_flamingo

from flamingo_rt.bundle import read_bundle
from flamingo_rt.checkpoints import open_checkpoint, save_checkpoint
from flamingo_rt.config import TokensConfig
from flamingo_rt.contract import GRAPHS, LANGUAGE_MODEL, RESAMPLER
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.export.quantization.calibration import read_prompts
from flamingo_rt.export.quantization.packed_matrices import round_to_nearest
from flamingo_rt.export.quantization.qdq import dequantize_graph
from flamingo_rt.export.quantization.quantization_options import SCHEMES, Blocks, Quantize
from flamingo_rt.training.tokenizer_training import train_tokenizer

WIDTH, OUTPUTS = 128, 40
INT4 = SCHEMES["int4"].with_block(32)
FF, ATTENTION = "language.layers.0.ff.up.weight", "language.layers.0.attention.query.weight"


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def model_of(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], x: np.ndarray) -> onnx_ir.Model:
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        nodes, "few", [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return onnx_ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11))


def run(model: onnx_ir.Model, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # With optimizations, ONNX Runtime would round the activations too.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = onnx_ir.to_proto(model)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def product(name: str) -> list[onnx.NodeProto]:
    return [helper.make_node("MatMul", ["x", name], ["y"])]


def by_column(matrix: np.ndarray) -> np.ndarray:
    """[in, out] with each column in 127 steps up to its largest number."""
    steps = np.abs(matrix).max(axis=0) / 127
    return np.rint(matrix / steps) * steps


def types_of(model: onnx_ir.Model) -> dict[str, str]:
    return {name: value.dtype.name for name, value in model.graph.initializers.items()}


def test_eight_bits_have_a_scale_for_each_column() -> None:
    x, matrix = numbers(5, WIDTH), numbers(WIDTH, OUTPUTS) * np.linspace(0.1, 9, OUTPUTS, dtype=np.float32)
    model = model_of(product(ATTENTION), {ATTENTION: matrix}, x)
    assert dequantize_graph(LANGUAGE_MODEL, model.graph, SCHEMES["int8"]) == {}
    assert types_of(model) == {f"{ATTENTION}.numbers": "INT8", f"{ATTENTION}.scales": "FLOAT"}
    np.testing.assert_allclose(run(model, x), x @ by_column(matrix), atol=1e-4)


def test_four_bits_have_a_scale_for_each_block_of_a_column() -> None:
    x, matrix = numbers(5, WIDTH), numbers(WIDTH, OUTPUTS)
    model = model_of(product(FF), {FF: matrix}, x)
    assert dequantize_graph(LANGUAGE_MODEL, model.graph, INT4) == {"feed_forward": {32}}
    assert types_of(model) == {f"{FF}.numbers": "INT4", f"{FF}.scales": "FLOAT"}
    expected = round_to_nearest(matrix.T, Blocks(4, 32)).dequantized().T
    np.testing.assert_allclose(run(model, x), x @ expected, atol=1e-4)
    assert 0.01 < np.abs(expected - matrix).max() / np.abs(matrix).max() < 0.2


def test_matrices_that_were_rounded_before_are_stored_as_they_are() -> None:
    x, matrix = numbers(5, WIDTH), numbers(WIDTH, OUTPUTS)
    other = round_to_nearest(numbers(OUTPUTS, WIDTH, seed=1), Blocks(4, 32))
    model = model_of(product(FF), {FF: matrix}, x)
    dequantize_graph(LANGUAGE_MODEL, model.graph, INT4, {FF: other})
    np.testing.assert_allclose(run(model, x), x @ other.dequantized().T, atol=1e-4)


def test_fp8_keeps_three_bits_of_every_number() -> None:
    x, matrix = numbers(5, WIDTH), numbers(WIDTH, OUTPUTS)
    model = model_of(product(FF), {FF: matrix}, x)
    dequantize_graph(LANGUAGE_MODEL, model.graph, SCHEMES["fp8"])
    assert types_of(model)[f"{FF}.numbers"] == "FLOAT8E4M3FN"
    stored = run(model_of(product(FF), {FF: matrix}, x), x)
    error = np.abs(run(model, x) - stored).max() / np.abs(stored).max()
    assert 1e-3 < error < 0.05
    identity = np.eye(WIDTH, dtype=np.float32)
    model = model_of(product(FF), {FF: matrix}, identity)
    dequantize_graph(LANGUAGE_MODEL, model.graph, SCHEMES["fp8"])
    kept = run(model, identity)
    large = np.abs(matrix) > 0.01  # e4m3 has subnormals below
    assert np.abs(kept / matrix - 1)[large].max() <= 1 / 16 + 1e-5


def test_other_graphs_are_by_column_whatever_the_scheme() -> None:
    x, matrix, bias = numbers(5, WIDTH), numbers(OUTPUTS, WIDTH), numbers(OUTPUTS)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    model = model_of([node], {"w": matrix, "b": bias}, x)
    assert dequantize_graph(RESAMPLER, model.graph, INT4) == {}
    assert types_of(model) == {"b": "FLOAT", "w.numbers": "INT8", "w.scales": "FLOAT"}
    np.testing.assert_allclose(run(model, x), x @ by_column(matrix.T) + bias, atol=1e-4)


def test_a_tied_embedding_is_stored_once() -> None:
    ids, name = np.array([[3, 0, 7]]), "language.embedding.weight"
    table = numbers(OUTPUTS, WIDTH) * np.linspace(0.1, 3, OUTPUTS, dtype=np.float32)[:, None]
    nodes = [
        helper.make_node("Gather", [name, "x"], ["hidden"]), helper.make_node("Transpose", [name], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["hidden", "t"], ["y"]),
    ]
    model = model_of(nodes, {name: table}, ids)
    dequantize_graph(LANGUAGE_MODEL, model.graph, INT4)
    assert types_of(model) == {f"{name}.numbers": "INT8", f"{name}.scales": "FLOAT"}
    stored = by_column(table.T).T
    np.testing.assert_allclose(run(model, ids), stored[ids] @ stored.T, rtol=1e-4, atol=1e-3)


def test_an_embedding_that_is_not_the_head_stays_in_float() -> None:
    ids, table = np.array([[3, 0, 7]]), numbers(OUTPUTS, WIDTH)
    nodes = [helper.make_node("Gather", ["language.embedding.weight", "x"], ["y"])]
    model = model_of(nodes, {"language.embedding.weight": table}, ids)
    dequantize_graph(LANGUAGE_MODEL, model.graph, INT4)
    np.testing.assert_array_equal(run(model, ids), table[ids])


# A whole export


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("dequantized")
    tokenizer = train_tokenizer(TEXTS, small_config().language.vocab_size, TokensConfig())
    save_checkpoint(folder / "checkpoint", small_flamingo(), tokenizer.to_str())
    calibration = folder / "prompts.jsonl"
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(folder / "a.png")
    calibration.write_text("\n".join(json.dumps([{"image": "a.png"}, text]) for text in TEXTS))
    options = Quantize("int4", calibration=read_prompts(calibration), block=32, min_cosine=0.5, max_changed=1.0)
    export_model(
        open_checkpoint(folder / "checkpoint"), folder / "bundle", lowering="tensorrt", compute="fp16", quantize=options
    )
    return folder


def test_a_whole_export_has_every_large_matrix_quantized_and_scales_in_half_precision(quantized: Path) -> None:
    bundle = read_bundle(quantized / "bundle")
    entry = bundle.graphs[LANGUAGE_MODEL]
    assert (entry.lowering, entry.quantization, entry.compute) == ("tensorrt", "int4", "float16")
    for name in GRAPHS:
        graph = onnx.load(bundle.graph_path(name), load_external_data=False).graph
        for node in graph.node:
            if node.op_type == "DequantizeLinear":
                kinds = [next(t.data_type for t in graph.initializer if t.name == part) for part in node.input]
                assert kinds[0] in (onnx.TensorProto.INT8, onnx.TensorProto.INT4)
                assert kinds[1] == onnx.TensorProto.FLOAT16
        weights = {t.name: t for t in graph.initializer}
        dense = [n for n in graph.node if n.op_type == "MatMul" and n.input[1] in weights
                 and np.prod(weights[n.input[1]].dims) >= 1024]
        assert not dense, name
    assert not list((quantized / "bundle").glob("*upcast*"))


def test_the_cost_of_quantization_is_recorded(quantized: Path) -> None:
    record = read_bundle(quantized / "bundle").quantization
    assert record["rounding"] == "gptq"
    assert record["blocks"]["attention"] == {"bits": 4, "block": 32, "fitted": [32]}
    assert record["blocks"]["head"] == {"bits": 8}
    assert 0.9 < record["quality"]["graphs"][LANGUAGE_MODEL]["cosine"] < 0.99999


@pytest.mark.parametrize(
    ("lowering", "options", "message"),
    [
        ("tensorrt-classic", {"scheme": "int4"}, "the lowering tensorrt-classic has no quantization int4; known: int8"),
        ("ort", {"scheme": "fp8"}, "the lowering ort has no quantization fp8; known: int8, mixed, int4"),
        ("tensorrt", {"scheme": "int4", "block": 256}, "block is 256; known for the lowering tensorrt: 32, 64, 128"),
    ],
)
def test_a_scheme_or_block_that_a_lowering_lacks_is_refused(
    quantized: Path, tmp_path, lowering, options, message
) -> None:
    with pytest.raises(UsageError, match=message):
        export_model(
            open_checkpoint(quantized / "checkpoint"), tmp_path / "out", lowering=lowering,
            quantize=Quantize(rounding="nearest", **options),
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numbers_are_rounded_for_the_scales_as_they_are_stored(scheme: str, dtype: str) -> None:
    """Use columns so small that half precision can hardly hold their scales."""
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    smallest = 1.6e-5  # the scales are below 6e-5, the smallest normal number of fp16
    matrix = (numbers(WIDTH, OUTPUTS) * smallest * 127).astype(kind)
    model = model_of(product(FF), {FF: matrix}, numbers(1, WIDTH).astype(kind))
    dequantize_graph(LANGUAGE_MODEL, model.graph, SCHEMES[scheme])
    stored = {name: value.const_value.numpy().astype(np.float32) for name, value in model.graph.initializers.items()}
    found = stored[f"{FF}.numbers"] * stored[f"{FF}.scales"]
    exact = matrix.astype(np.float32)
    error = np.abs(found - exact).max() / np.abs(exact).max()
    assert error < {"int8": 1 / 127, "fp8": 1 / 16}[scheme]


def test_before_opset_19_scales_are_float32_with_a_cast_behind() -> None:
    x = numbers(5, WIDTH).astype(np.float16)
    model = model_of(product(ATTENTION), {ATTENTION: numbers(WIDTH, OUTPUTS).astype(np.float16)}, x)
    model.graph.opset_imports[""] = 17
    dequantize_graph(LANGUAGE_MODEL, model.graph, SCHEMES["int8"])
    assert types_of(model)[f"{ATTENTION}.scales"] == "FLOAT"
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "Cast", "MatMul"]


def test_a_matrix_that_no_block_fits_has_eight_bits() -> None:
    x, matrix = numbers(5, 72), numbers(72, OUTPUTS)
    model = model_of(product(FF), {FF: matrix}, x)
    assert dequantize_graph(LANGUAGE_MODEL, model.graph, INT4) == {}
    np.testing.assert_allclose(run(model, x), x @ by_column(matrix), atol=1e-4)


def test_a_weight_of_two_products_is_stored_and_dequantized_once() -> None:
    x, matrix = numbers(WIDTH, WIDTH), numbers(WIDTH, WIDTH)
    nodes = [helper.make_node("MatMul", ["x", FF], ["h"]), helper.make_node("MatMul", ["h", FF], ["y"])]
    model = model_of(nodes, {FF: matrix}, x)
    dequantize_graph(LANGUAGE_MODEL, model.graph, SCHEMES["int8"])
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "MatMul", "MatMul"]
    kept = by_column(matrix)
    np.testing.assert_allclose(run(model, x), x @ kept @ kept, rtol=1e-3, atol=1e-2)


def test_a_weight_that_is_not_finite_is_named() -> None:
    matrix = numbers(WIDTH, OUTPUTS)
    matrix[3, 3] = np.nan
    model = model_of(product(FF), {FF: matrix}, numbers(1, WIDTH))
    dequantize_graph(LANGUAGE_MODEL, model.graph, SCHEMES["int8"])
    with pytest.raises(DataError, match=f"weight {FF} has numbers that are not finite"):
        model.graph.initializers[f"{FF}.numbers"].const_value.numpy()
