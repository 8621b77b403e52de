"""Quantized graphs compute with exactly the numbers their weights were rounded to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from few_nodes import OPSET, session
from onnx import helper, numpy_helper
from small_model import small_config, small_flamingo
from torch import Tensor, nn

from flamingo_rt.config import FlamingoConfig, ViTConfig
from flamingo_rt.contract import GRAPHS, LANGUAGE_MODEL, RESAMPLER, VISION_ENCODER
from flamingo_rt.engines.ort import OrtBackend
from flamingo_rt.export import tracing
from flamingo_rt.export.checks.parity import check_parity
from flamingo_rt.export.checks.parity_cases import compute_reference
from flamingo_rt.export.graph_weights import Weights, save_graph
from flamingo_rt.export.quantization.matmul_nbits import SMALLEST_MATRIX, quantize_graph
from flamingo_rt.export.quantization.packed_matrices import QuantizedMatrix, round_to_nearest
from flamingo_rt.export.quantization.quantization_options import SCHEMES, SCHEMES_OF, Blocks, Scheme
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.weights.lazy import LazyTensor

# A tied head, ALiBi, a gated activation, cross-attention before every layer; one width has no block of 32.
TIED = replace(
    small_config(), vision=ViTConfig(image_size=32, patch_size=16, width=48, layers=1, heads=2, ff_width=64),
    cross_attention=replace(small_config().cross_attention, interval=1),
    language=replace(
        small_config().language, layers=2, positions="alibi", norm="layernorm", activation="swiglu", ff_width=80,
        tied_head=True,
    ),
)


def lazy(model: Flamingo) -> dict[str, LazyTensor]:
    return {name: LazyTensor(tuple(t.shape), t.dtype, Path("weights"), t.detach().clone, name)
            for name, t in model.state_dict().items()}


@pytest.fixture(scope="module")
def tied() -> tuple[Flamingo, dict[str, onnx_ir.Model]]:
    """The tied model, with gates of both signs, and its graphs."""
    model = small_flamingo(TIED)
    with torch.no_grad():
        for layer in model.cross_attention.layers.values():
            layer.attention_gate.fill_(-0.8)
            layer.ff_gate.fill_(-0.4)
    return model, dict(tracing.trace_graphs(TIED, "ort", Weights(lazy(model)).bind))


@pytest.fixture(params=["untied", "tied"])
def model_and_graphs(request, traced, tied) -> tuple[Flamingo, dict[str, onnx_ir.Model]]:
    if request.param == "tied":
        return tied
    return small_flamingo(), {name: pair[1] for name, pair in traced.items()}


def quantized(
    graph: onnx_ir.Model, name: str, scheme: str, path: Path, rounded: Mapping[str, QuantizedMatrix] | None = None
) -> onnx.ModelProto:
    """A quantized copy of a graph, written to ``path``."""
    copy = graph.clone()
    quantize_graph(name, copy.graph, SCHEMES[scheme], rounded)
    save_graph(copy, path)
    onnx.checker.check_model(path)
    return onnx.load(path)


def in_float32(path: Path) -> None:
    """Make the graph multiply its blocks in float32: the oracle."""
    graph = onnx.load(path, load_external_data=False)
    count = 0
    for node in graph.graph.node:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i, count = 1, count + 1
    assert count
    onnx.save(graph, path)


def kind_of(name: str, scheme: Scheme) -> Blocks:
    """The blocks of a matrix of the language model, from the table in the README."""
    if name in ("language.head.weight", "language.embedding.weight"):
        return scheme.head
    return scheme.feed_forward if ".ff." in name else scheme.attention


def read_by_language_model(name: str) -> bool:
    return name.startswith("language.") or (
        name.startswith("cross_attention.layers.") and not name.endswith((".key.weight", ".value.weight"))
    )


def rounded_as(model: Flamingo, scheme: Scheme, given: Mapping[str, QuantizedMatrix]) -> Flamingo:
    """The model with what each matrix of the language model is rounded to."""
    copy = Flamingo(model.config).eval()
    copy.load_state_dict(model.state_dict())
    for name, module in copy.named_modules():
        weight = f"{name}.weight"
        if isinstance(module, (nn.Linear, nn.Embedding)) and read_by_language_model(weight):
            matrix = module.weight.detach().numpy()
            blocks = kind_of(weight, scheme).fitting(matrix.shape[1])
            assert blocks is not None, weight
            found = given.get(weight) or round_to_nearest(matrix, blocks)
            module.weight.data.copy_(torch.from_numpy(found.dequantized()))
    return copy


def language_deviation(config: FlamingoConfig, model: Flamingo, path: Path, tolerance: float) -> float:
    """Largest deviation of the graph from the model, in logits and caches."""
    backend = OrtBackend({LANGUAGE_MODEL: path}, config, threads=1)
    reference = compute_reference(model)
    return check_parity(reference, backend, config, tolerance, graphs=(LANGUAGE_MODEL,))[LANGUAGE_MODEL]


# The language model


@pytest.mark.parametrize("scheme", SCHEMES_OF["ort"])
def test_a_language_model_computes_with_the_nearest_numbers(model_and_graphs, scheme: str, tmp_path: Path) -> None:
    model, graphs = model_and_graphs
    path = tmp_path / "language_model.onnx"
    quantized(graphs[LANGUAGE_MODEL], LANGUAGE_MODEL, scheme, path)
    in_float32(path)
    expected = rounded_as(model, SCHEMES[scheme], {})
    assert 0 < language_deviation(model.config, expected, path, 1e-4) < 1e-4


def test_a_language_model_computes_with_the_numbers_it_is_given(model_and_graphs, tmp_path: Path) -> None:
    """Give it rounded numbers of other matrices: those that are merged stand side by side, and gates are multiplied
    into the scales."""
    model, graphs = model_and_graphs
    given = {}
    for name, tensor in model.state_dict().items():
        if read_by_language_model(name) and tensor.ndim == 2 and "embedding" not in name and "head" not in name:
            blocks = kind_of(name, SCHEMES["int4"]).fitting(tensor.shape[1])
            other = tensor.numpy() + 0.1 * np.random.default_rng(len(given)).standard_normal(tensor.shape)
            given[name] = round_to_nearest(other.astype(np.float32), blocks)
    path = tmp_path / "language_model.onnx"
    quantized(graphs[LANGUAGE_MODEL], LANGUAGE_MODEL, "int4", path, given)
    in_float32(path)
    assert language_deviation(model.config, rounded_as(model, SCHEMES["int4"], given), path, 1e-4) > 0


def test_activations_in_8_bits_cost_little_more(model_and_graphs, tmp_path: Path) -> None:
    """Run the graph as users do: its results are near those of the rounded weights, and not equal to them."""
    model, graphs = model_and_graphs
    path = tmp_path / "language_model.onnx"
    proto = quantized(graphs[LANGUAGE_MODEL], LANGUAGE_MODEL, "int8", path)
    levels = {attribute.i for node in proto.graph.node for attribute in node.attribute
              if attribute.name == "accuracy_level"}
    assert levels == {4}
    found = language_deviation(model.config, rounded_as(model, SCHEMES["int8"], {}), path, 0.2)
    assert found > 1e-4


def blocks_by_matrix(proto: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Bits and block by the matrix that is multiplied or taken from."""
    found = {}
    for node in proto.graph.node:
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
            attributes = {attribute.name: attribute.i for attribute in node.attribute}
            packed = node.input[1 if node.op_type == "MatMulNBits" else 0]
            found[f"{packed} {node.op_type}"] = attributes["bits"], attributes["block_size"]
    return found


@pytest.mark.parametrize(("scheme", "bits"), [("int8", (8, 8, 8)), ("mixed", (8, 4, 8)), ("int4", (4, 4, 8))])
def test_a_scheme_gives_each_kind_of_matrix_its_bits(traced, scheme: str, bits: tuple, tmp_path: Path) -> None:
    """Attention, feed-forward, head; of the cross-attention too. Blocks are what the widths allow."""
    found = blocks_by_matrix(quantized(traced[LANGUAGE_MODEL][1], LANGUAGE_MODEL, scheme, tmp_path / "graph.onnx"))
    attention, feed_forward, head = bits
    assert len(found) == 3 * 4 + 2 * 4 + 2
    for name, (number, block) in found.items():
        if "language.head" in name or "language.embedding" in name:
            assert (number, block) == (head, 32), name
        elif ".ff." in name:
            down = 16 if "language" in name else 128  # the largest blocks that divide 48 and 128
            assert (number, block) == (feed_forward, down if "down" in name else 32), name
        else:
            assert (number, block) == (attention, 32), name
    assert [name.endswith("GatherBlockQuantized") for name in found].count(True) == 1


@pytest.mark.parametrize("scheme", SCHEMES_OF["ort"])
def test_a_tied_embedding_is_stored_once(tied, scheme: str, tmp_path: Path) -> None:
    model, graphs = tied
    path = tmp_path / "graph.onnx"
    proto = quantized(graphs[LANGUAGE_MODEL], LANGUAGE_MODEL, scheme, path)
    tables = {tensor.name: tensor for tensor in proto.graph.initializer if "embedding" in tensor.name}
    rows, width = model.language.embedding.weight.shape
    stored = sum(numpy_helper.to_array(tensor).nbytes for tensor in tables.values())
    assert stored <= rows * width + 4 * rows * width // 32 + 64  # a byte a number, a scale for 32, a shape
    users = [node.op_type for node in proto.graph.node if any(name.endswith("embedding.weight.packed")
                                                             for name in node.input)]
    assert sorted(users) == ["GatherBlockQuantized", "MatMulNBits"]  # a reshaped table would be stored twice
    assert not any(node.op_type == "Transpose" for node in proto.graph.node)


def test_every_byte_of_the_language_model_is_accounted_for(model_and_graphs, tmp_path: Path) -> None:
    """Numbers of 4 or 8 bits and a scale for each block: that is all there is beside the graph."""
    model, graphs = model_and_graphs
    path = tmp_path / "graph.onnx"
    proto = quantized(graphs[LANGUAGE_MODEL], LANGUAGE_MODEL, "int4", path)
    expected = 0
    for name, tensor in model.state_dict().items():
        if read_by_language_model(name) and tensor.ndim == 2:
            blocks = kind_of(name, SCHEMES["int4"]).fitting(tensor.shape[1])
            expected += tensor.numel() * blocks.bits // 8 + 4 * tensor.numel() // blocks.block
    kept = {tensor.name: numpy_helper.to_array(tensor).nbytes for tensor in proto.graph.initializer}
    assert sum(size for name, size in kept.items() if name.endswith((".packed", ".scales"))) == expected
    assert max(size for name, size in kept.items() if not name.endswith((".packed", ".scales"))) <= 256


# Vision encoder and resampler


def signal(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Random numbers for the only input."""
    shape = [size.dim_value or 2 for size in proto.graph.input[0].type.tensor_type.shape.dim]
    return {proto.graph.input[0].name: np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}


@pytest.mark.parametrize("graph", [VISION_ENCODER, RESAMPLER])
def test_encoders_in_8_bits_answer_nearly_the_same(model_and_graphs, graph: str, tmp_path: Path) -> None:
    _, graphs = model_and_graphs
    dense, path = tmp_path / "dense.onnx", tmp_path / "graph.onnx"
    save_graph(graphs[graph].clone(), dense)
    proto = quantized(graphs[graph], graph, "int8", path)
    x = signal(proto)
    for expected, found in zip(*(session(str(file)).run(None, x) for file in (dense, path)), strict=True):
        cosine = (expected * found).sum() / (np.linalg.norm(expected) * np.linalg.norm(found))
        assert 0.999 < cosine < 1 - 1e-9
    assert {"MatMulInteger", "DequantizeLinear"} & {node.op_type for node in proto.graph.node}


@pytest.mark.parametrize("scheme", SCHEMES_OF["ort"])
def test_encoders_have_8_bits_in_every_scheme(tied, scheme: str, tmp_path: Path) -> None:
    for name in (VISION_ENCODER, RESAMPLER):
        proto = quantized(tied[1][name], name, scheme, tmp_path / f"{name}.onnx")
        assert not any(node.op_type == "MatMulNBits" for node in proto.graph.node)
        kinds = [tensor.data_type for tensor in proto.graph.initializer if math.prod(tensor.dims) >= SMALLEST_MATRIX]
        assert set(kinds) == {onnx.TensorProto.INT8}


# Single operators


def alone(node: onnx.NodeProto, weight: np.ndarray, x: tuple, y: tuple, name: str, scheme: str = "int4",
          **others: np.ndarray) -> tuple[onnx.ModelProto, list[str]]:
    """One operator, quantized: the graph, and what operators it has."""
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, y)],
        [numpy_helper.from_array(array, key) for key, array in ({node.input[1]: weight} | others).items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = onnx_ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    quantize_graph(name, model.graph, SCHEMES[scheme])
    proto = onnx_ir.to_proto(model)
    onnx.checker.check_model(proto)
    return proto, [node.op_type for node in proto.graph.node]


def run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return session(proto).run(None, {"x": x})[0]


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def product() -> onnx.NodeProto:
    return helper.make_node("MatMul", ["x", "vision.w.weight.transposed"], ["y"])


def columns(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 and a scale for each column."""
    scales = np.abs(matrix).max(0) / np.float32(127)
    return np.rint(matrix / scales).astype(np.int64), scales


def slow_integer_product(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """x [..., width]: each row in 127 steps from 0 to its largest number, multiplied as integers; in float64."""
    integers, scales = columns(matrix)
    largest = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-30))
    stored = np.rint(x / largest / np.float32(1 / 127)).astype(np.float64)
    return (stored @ integers) * scales * largest.astype(np.float64) / 127


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(5, 48), (2, 3, 48)])
def test_a_product_of_integers_is_that_of_the_definition(seed: int, shape: tuple) -> None:
    x, matrix = numbers(*shape, seed=seed), numbers(48, 40, seed=seed)
    matrix *= np.random.default_rng(seed).uniform(0.1, 5, 40).astype(np.float32)  # columns of different sizes
    proto, operators = alone(product(), matrix, shape, (*shape[:-1], 40), VISION_ENCODER)
    assert operators.count("MatMulInteger") == 1
    assert "MatMul" not in operators
    expected = slow_integer_product(x, matrix)
    np.testing.assert_allclose(run(proto, x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    dense = x @ matrix
    assert np.abs(expected - dense).max() < 0.03 * np.abs(dense).max()


def test_a_product_of_integers_does_not_overflow() -> None:
    """Use the largest numbers there are: 16 bits do not hold the sum of two products, 32 bits hold all of them."""
    for sign in (1, -1):
        x, matrix = np.full((2, 4096), sign, np.float32), np.ones((4096, 16), np.float32)
        found = run(alone(product(), matrix, x.shape, (2, 16), VISION_ENCODER)[0], x)
        np.testing.assert_allclose(found, sign * 4096.0, rtol=1e-5)


def test_a_rows_product_does_not_depend_on_the_others() -> None:
    """A picture's keys and values are those it has alone, whatever is encoded with it."""
    x, matrix = numbers(6, 48), numbers(48, 40)
    together = run(alone(product(), matrix, (6, 48), (6, 40), VISION_ENCODER)[0], x)
    for row in range(6):
        by_itself = run(alone(product(), matrix, (1, 48), (1, 40), VISION_ENCODER)[0], x[row : row + 1])
        np.testing.assert_array_equal(together[row], by_itself[0])


def test_a_row_with_a_large_number_costs_the_others_nothing() -> None:
    x, matrix = numbers(4, 48), numbers(48, 40)
    expected = run(alone(product(), matrix, (4, 48), (4, 40), VISION_ENCODER)[0], x)
    x[2] *= 1000
    found = run(alone(product(), matrix, (4, 48), (4, 40), VISION_ENCODER)[0], x)
    np.testing.assert_allclose(found[[0, 1, 3]], expected[[0, 1, 3]], rtol=1e-4, atol=1e-5)


def test_a_row_of_zeros_gives_zeros() -> None:
    x = numbers(4, 48)
    x[1] = 0
    found = run(alone(product(), numbers(48, 40), (4, 48), (4, 40), RESAMPLER)[0], x)
    assert np.isfinite(found).all()
    assert not found[1].any()
    assert found[0].any()


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_computes_with_8_bits_an_output_channel(groups: int) -> None:
    x, matrix = numbers(2, 16, 9, 9), numbers(24, 16 // groups, 3, 3) * np.linspace(0.1, 9, 24).reshape(-1, 1, 1, 1)
    matrix, bias = matrix.astype(np.float32), numbers(24)
    node = helper.make_node("Conv", ["x", "vision.c.weight", "bias"], ["y"], group=groups, pads=[1, 1, 1, 1])
    proto, operators = alone(node, matrix, x.shape, (2, 24, 9, 9), VISION_ENCODER, bias=bias)
    assert operators == ["DequantizeLinear", "Conv"]
    scales = np.abs(matrix).max(axis=(1, 2, 3)) / 127
    stored = np.rint(matrix / scales[:, None, None, None]) * scales[:, None, None, None]
    with torch.no_grad():
        expected = nn.functional.conv2d(
            *(torch.from_numpy(np.asarray(a, np.float64)) for a in (x, stored, bias)), padding=1, groups=groups
        ).numpy()
    np.testing.assert_allclose(run(proto, x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert kinds["vision.c.weight.integers"] == onnx.TensorProto.INT8


def test_a_gate_of_channels_is_stored_in_8_bits() -> None:
    x, matrix, bias = numbers(3, 32), numbers(48, 32), numbers(48)
    node = helper.make_node("Gemm", ["x", "vision.g.weight", "bias"], ["y"], transB=1)
    proto, operators = alone(node, matrix, x.shape, (3, 48), VISION_ENCODER, bias=bias)
    assert operators == ["DequantizeLinear", "Gemm"]
    integers, scales = columns(matrix.T)
    expected = x @ (integers * scales) + bias
    np.testing.assert_allclose(run(proto, x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("graph", GRAPHS)
def test_small_matrices_stay(graph: str) -> None:
    weight = numbers(33, 31)
    assert weight.size < SMALLEST_MATRIX
    proto, operators = alone(product(), weight, (2, 33), (2, 31), graph)
    assert operators == ["MatMul"]
    np.testing.assert_array_equal(numpy_helper.to_array(proto.graph.initializer[0]), weight)


@pytest.mark.parametrize(("width", "operator"), [(40, "MatMul"), (44, "MatMul"), (48, "MatMulNBits")])
def test_a_matrix_whose_rows_no_block_divides_stays(width: int, operator: str) -> None:
    x, weight = numbers(2, width), numbers(width, 64)
    proto, operators = alone(product(), weight, x.shape, (2, 64), LANGUAGE_MODEL, "int8")
    assert operators == [operator]
    np.testing.assert_allclose(run(proto, x), x @ weight, rtol=0, atol=0.3)


def test_a_tied_embedding_whose_rows_no_block_divides_stays(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["language.embedding.weight", "ids"], ["y"])]
    graph = helper.make_graph(
        nodes, "one", [helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, (2,))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (2, 40))],
        [numpy_helper.from_array(numbers(60, 40), "language.embedding.weight")],
    )
    model = onnx_ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10))
    quantize_graph(LANGUAGE_MODEL, model.graph, SCHEMES["int8"])
    assert [node.op_type for node in model.graph] == ["Gather"]


@pytest.mark.parametrize("graph", [VISION_ENCODER, LANGUAGE_MODEL])
def test_a_matrix_that_is_read_twice_is_quantized_for_both(graph: str) -> None:
    weight = numbers(48, 48)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])]
    info = helper.make_tensor_value_info
    proto = helper.make_graph(
        nodes, "two", [info("x", onnx.TensorProto.FLOAT, (3, 48))], [info("y", onnx.TensorProto.FLOAT, (3, 48))],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = onnx_ir.from_proto(helper.make_model(proto, opset_imports=opsets, ir_version=10))
    quantize_graph(graph, model.graph, SCHEMES["int8"])
    x = numbers(3, 48)
    expected = x @ weight @ weight
    found = run(onnx_ir.to_proto(model), x)
    assert "MatMul" not in [node.op_type for node in model.graph]
    assert "w" not in model.graph.initializers
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


# Results of `quantize_graph`, and when weights are read


@pytest.mark.parametrize("scheme", SCHEMES_OF["ort"])
def test_the_blocks_of_each_kind_of_matrix_are_returned(model_and_graphs, scheme: str, tmp_path: Path) -> None:
    _model, graphs = model_and_graphs
    told = {name: quantize_graph(name, graph.clone().graph, SCHEMES[scheme]) for name, graph in graphs.items()}
    written = quantized(graphs[LANGUAGE_MODEL], LANGUAGE_MODEL, scheme, tmp_path / "graph.onnx")
    found: dict[str, set[int]] = {"attention": set(), "feed_forward": set(), "head": set()}
    for name, (_, block) in blocks_by_matrix(written).items():
        table = "language.head" in name or "language.embedding" in name
        found["head" if table else "feed_forward" if ".ff." in name else "attention"].add(block)
    assert told.pop(LANGUAGE_MODEL) == found
    assert all(found.values())
    assert not any(told.values()), "the encoders have no blocks"


def test_nothing_is_read_before_the_graph_is_written(traced, monkeypatch: pytest.MonkeyPatch) -> None:
    def reading(*arguments: object) -> Tensor:
        raise AssertionError("read")

    monkeypatch.setattr(onnx_ir.LazyTensor, "numpy", reading)
    for name, (_, graph) in traced.items():
        quantize_graph(name, graph.clone().graph, SCHEMES["int4"])
