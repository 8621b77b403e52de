"""Fewer operators, the same numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from few_nodes import OPSET, session
from onnx import helper, numpy_helper
from torch import Tensor

from flamingo_rt.checkpoints import StoredModel
from flamingo_rt.contract import GRAPHS, LANGUAGE_MODEL, RESAMPLER
from flamingo_rt.engines.ort import OrtBackend
from flamingo_rt.export.checks.parity import compare
from flamingo_rt.export.checks.parity_cases import Reference
from flamingo_rt.export.graph_weights import parts_of, save_graph, tensor_name
from flamingo_rt.export.simplify import MERGED, simplify

# Graphs of a few operators


def graph_of(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], x: tuple = ("B", 4), y: tuple = ("B", 6),
    also: tuple[str, ...] = (),
) -> onnx_ir.Model:
    """A graph from ``x`` to ``y``; the weights' names stand for tensors of a model. It gives out ``also`` too, after y
    and of its shape."""
    graph = helper.make_graph(
        nodes, "few", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, y) for name in ("y", *also)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return onnx_ir.from_proto(onnx.shape_inference.infer_shapes(model))


def operators(model: onnx_ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def answer(model: onnx_ir.Model, x: np.ndarray) -> list[np.ndarray]:
    return session(onnx_ir.to_proto(model)).run(None, {"x": x})


def simplified(model: onnx_ir.Model, x: np.ndarray) -> onnx_ir.Model:
    """The simplified graph, which answers as before."""
    expected, names = answer(model, x), [output.name for output in model.graph.outputs]
    simplify(model.graph)
    onnx.checker.check_model(onnx_ir.to_proto(model), full_check=True)
    assert [output.name for output in model.graph.outputs] == names
    for found, before in zip(answer(model, x), expected, strict=True):
        np.testing.assert_allclose(found, before, rtol=1e-5, atol=1e-6)
    return model


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


node = helper.make_node
X = numbers(3, 4, seed=9)
W = {"model.w.weight.transposed": numbers(4, 6)}
PRODUCT = node("MatMul", ["x", *W], ["product"])


# Factors


@pytest.mark.parametrize("factor", [0.6, -0.6, 0.0])
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("first", [True, False])
def test_a_factor_goes_into_the_matrix_before_it(factor: float, shape: tuple, first: bool) -> None:
    scale = ["factor", "product"] if first else ["product", "factor"]
    weights = W | {"factor": np.full(shape, factor, np.float32)}
    model = simplified(graph_of([PRODUCT, node("Mul", scale, ["scaled"]), node("Relu", ["scaled"], ["y"])], weights), X)
    assert operators(model) == {"MatMul": 1, "Relu": 1}
    weight = model.graph.node(0).inputs[1]
    assert parts_of(weight) == [("w.weight", pytest.approx(factor))]
    np.testing.assert_allclose(weight.const_value.numpy(), factor * next(iter(W.values())), rtol=1e-6)


def test_a_factor_goes_through_a_product_with_something_else() -> None:
    """factor * (x @ W * y): the gate, behind what silences tokens without a picture."""
    weights = W | {"factor": np.array([-0.3], np.float32)}
    nodes = [PRODUCT, node("ReduceMax", ["x"], ["some"], keepdims=1), node("Mul", ["product", "some"], ["silenced"]),
             node("Mul", ["factor", "silenced"], ["scaled"]), node("Relu", ["scaled"], ["y"])]
    model = simplified(graph_of(nodes, weights), X)
    assert operators(model) == {"MatMul": 1, "ReduceMax": 1, "Mul": 1, "Relu": 1}


def test_factors_in_a_row_are_multiplied() -> None:
    weights = W | {"one": np.array(-0.5, np.float32), "two": np.array(3, np.float32)}
    nodes = [PRODUCT, node("Mul", ["product", "one"], ["half"]), node("Mul", ["two", "half"], ["scaled"]),
             node("Relu", ["scaled"], ["y"])]
    model = simplified(graph_of(nodes, weights), X)
    assert operators(model) == {"MatMul": 1, "Relu": 1}
    assert parts_of(model.graph.node(0).inputs[1]) == [("w.weight", pytest.approx(-1.5))]


@pytest.mark.parametrize("reader", ["product", "silenced"])
def test_a_factor_stays_where_something_else_reads_what_it_multiplies(reader: str) -> None:
    weights = W | {"factor": np.array(0.5, np.float32)}
    nodes = [PRODUCT, node("ReduceMax", ["x"], ["some"], keepdims=1), node("Mul", ["product", "some"], ["silenced"]),
             node("Mul", ["factor", "silenced"], ["scaled"]), node("Add", ["scaled", reader], ["y"])]
    model = simplified(graph_of(nodes, weights), X)
    assert operators(model)["Mul"] == 2
    assert parts_of(model.graph.node(0).inputs[1]) == [("w.weight", 1.0)]


def test_a_factor_stays_where_its_matrix_is_used_twice() -> None:
    weights = W | {"factor": np.array(0.5, np.float32)}
    nodes = [PRODUCT, node("Neg", ["x"], ["minus"]), node("MatMul", ["minus", *W], ["other"]),
             node("Mul", ["factor", "product"], ["scaled"]), node("Add", ["scaled", "other"], ["y"])]
    assert operators(simplified(graph_of(nodes, weights), X))["Mul"] == 1


@pytest.mark.parametrize("given", ["product", "silenced", "scaled"])
def test_a_factor_stays_where_the_graph_gives_out_what_it_would_change(given: str) -> None:
    weights = W | {"factor": np.array(0.5, np.float32)}
    nodes = [PRODUCT, node("ReduceMax", ["x"], ["some"], keepdims=1), node("Mul", ["product", "some"], ["silenced"]),
             node("Mul", ["factor", "silenced"], ["scaled"]), node("Relu", ["scaled"], ["y"])]
    model = simplified(graph_of(nodes, weights, also=(given,)), X)
    assert operators(model)["Mul"] == 2


def test_vectors_are_no_factors() -> None:
    weights = W | {"vector": numbers(6)}
    nodes = [PRODUCT, node("Mul", ["vector", "product"], ["y"])]
    assert operators(simplified(graph_of(nodes, weights), X)) == {"MatMul": 1, "Mul": 1}


# Matrices of one input


@pytest.mark.parametrize("widths", [(6, 6), (6, 2, 4)])
def test_matrices_of_one_input_become_one(widths: tuple[int, ...]) -> None:
    weights = {f"model.w{i}.weight.transposed": numbers(4, width, seed=i) for i, width in enumerate(widths)}
    nodes = [node("MatMul", ["x", name], [f"p{i}"]) for i, name in enumerate(weights)]
    nodes.append(node("Concat", [f"p{i}" for i in range(len(widths))], ["y"], axis=-1))
    model = simplified(graph_of(nodes, weights, y=("B", sum(widths))), X)
    assert operators(model) == {"MatMul": 1, "Split": 1, "Concat": 1}
    weight = model.graph.node(0).inputs[1]
    assert parts_of(weight) == [(f"w{i}.weight", 1.0) for i in range(len(widths))]
    np.testing.assert_array_equal(weight.const_value.numpy(), np.concatenate(list(weights.values()), axis=1))
    assert not set(weights) & set(model.graph.initializers)


def test_a_factor_of_a_part_is_kept_when_it_is_merged() -> None:
    weights = {"model.a.weight.transposed": numbers(4, 6), "model.b.weight.transposed": numbers(4, 6, seed=1),
               "factor": np.array(-0.5, np.float32)}
    nodes = [node("MatMul", ["x", "model.a.weight.transposed"], ["a"]), node("Mul", ["a", "factor"], ["scaled"]),
             node("MatMul", ["x", "model.b.weight.transposed"], ["b"]), node("Sub", ["scaled", "b"], ["y"])]
    model = simplified(graph_of(nodes, weights), X)
    assert operators(model) == {"MatMul": 1, "Split": 1, "Sub": 1}
    assert parts_of(model.graph.node(0).inputs[1]) == [("a.weight", -0.5), ("b.weight", 1.0)]


def test_a_matrix_whose_product_the_graph_gives_out_stays_apart() -> None:
    weights = {name: numbers(4, 6, seed=seed) for seed, name in enumerate("abc")}
    nodes = [node("MatMul", ["x", name], [f"p{name}"]) for name in weights]
    nodes.append(node("Sum", ["pa", "pb", "pc"], ["y"]))
    model = simplified(graph_of(nodes, weights, also=("pb",)), X)
    assert operators(model) == {"MatMul": 2, "Split": 1, "Sum": 1}
    assert "b" in model.graph.initializers


@pytest.mark.parametrize("operator", ["Mul", "MatMul"])
def test_a_weight_that_the_graph_gives_out_stays(operator: str) -> None:
    weights = {"a": numbers(4, 6), "b": numbers(4, 6, seed=1), "factor": np.array(0.5, np.float32)}
    nodes = [node("MatMul", ["x", "a"], ["p"])]
    nodes += [node("Mul", ["p", "factor"], ["q"])] if operator == "Mul" else [node("MatMul", ["x", "b"], ["q"])]
    nodes.append(node("Add", ["p" if operator == "MatMul" else "q", "q"], ["y"]))
    graph = graph_of(nodes, weights, also=("a",))
    graph.graph.outputs[1].shape = graph.graph.initializers["a"].shape
    model = simplified(graph, X)
    np.testing.assert_array_equal(model.graph.initializers["a"].const_value.numpy(), weights["a"])


def test_matrices_of_other_inputs_stay_apart() -> None:
    weights = {"a": numbers(4, 6), "b": numbers(4, 6, seed=1)}
    nodes = [node("Neg", ["x"], ["minus"]), node("MatMul", ["x", "a"], ["p"]), node("MatMul", ["minus", "b"], ["q"]),
             node("Add", ["p", "q"], ["y"])]
    assert operators(simplified(graph_of(nodes, weights), X))["MatMul"] == 2


# Reshapes


def shapes(**targets: list[int]) -> dict[str, np.ndarray]:
    return {name: np.array(target, dtype=np.int64) for name, target in targets.items()}


def test_only_the_last_of_several_reshapes_is_kept() -> None:
    nodes = [node("Reshape", ["x", "one"], ["a"]), node("Reshape", ["a", "two"], ["b"]),
             node("Reshape", ["b", "three"], ["c"]), node("Relu", ["c"], ["y"])]
    targets = shapes(one=[-1, 2, 2], two=[-1], three=[-1, 2])
    model = simplified(graph_of(nodes, targets, y=("N", 2)), X)
    assert operators(model) == {"Reshape": 1, "Relu": 1}


def test_a_zero_in_the_target_needs_the_shape_before_it() -> None:
    """0 means: as it was. [3, 4] -> [6, 2] -> [6, 1, 2], which is [3, 2, 2] when the first is left out."""
    nodes = [node("Reshape", ["x", "one"], ["a"]), node("Reshape", ["a", "two"], ["b"]), node("Relu", ["b"], ["y"])]
    model = simplified(graph_of(nodes, shapes(one=[-1, 2], two=[0, -1, 2]), y=("N", "M", 2)), X)
    assert operators(model) == {"Reshape": 2, "Relu": 1}


def test_a_reshape_to_the_shape_there_is_disappears() -> None:
    nodes = [node("Reshape", ["x", "same"], ["a"]), node("Relu", ["a"], ["y"])]
    model = simplified(graph_of(nodes, shapes(same=[3, 4]), x=(3, 4), y=(3, 4)), X)
    assert operators(model) == {"Relu": 1}


def test_a_reshape_that_the_graph_gives_out_stays() -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Reshape", ["a", "same"], ["y"])]
    model = simplified(graph_of(nodes, shapes(same=[3, 4]), x=(3, 4), y=(3, 4)), X)
    assert [output.name for output in model.graph.outputs] == ["y"]


def test_a_reshape_to_a_shape_that_may_be_another_stays() -> None:
    nodes = [node("Reshape", ["x", "pairs"], ["a"]), node("Relu", ["a"], ["y"])]
    model = simplified(graph_of(nodes, shapes(pairs=[-1, 2]), y=("N", 2)), X)
    assert operators(model) == {"Reshape": 1, "Relu": 1}


def test_a_node_whose_output_is_not_read_is_removed() -> None:
    nodes = [node("Neg", ["x"], ["a"]), node("Abs", ["a"], ["b"]), node("Relu", ["x"], ["y"])]
    assert operators(simplified(graph_of(nodes, {}, y=("B", 4)), X)) == {"Relu": 1}


# A model's graphs


class Outputs:
    """Metric that keeps the outputs of graphs."""

    def __init__(self) -> None:
        self.seen: list[tuple[tuple[str, str, str], np.ndarray]] = []

    def update(self, graph: str, tensor: str, case: str, found: np.ndarray, expected: Tensor) -> None:
        self.seen.append(((graph, tensor, case), found.copy()))


def test_simplified_graphs_compute_the_same(
    traced: Any, stored: StoredModel, reference: Reference, tmp_path: Path
) -> None:
    results = []
    for index in range(2):
        outputs, paths = Outputs(), {name: tmp_path / f"{name}.{index}.onnx" for name in GRAPHS}
        for name, path in paths.items():
            save_graph(traced[name][index].clone(), path)
        compare(reference, OrtBackend(paths, stored.config, threads=1), stored.config, outputs)
        results.append(outputs.seen)
    before, after = results
    assert len(before) == len(after) > 100
    assert any(operators(one) != operators(other) for one, other in traced.values())
    for (key, expected), (again, found) in zip(before, after, strict=True):
        assert key == again
        assert np.abs(found - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max()), key


def test_a_decoder_layer_has_few_operators(traced: Any) -> None:
    """Count from one self-attention to the next, without cross-attention between them: four products, two norms, the
    rotation of queries and keys, which splits the heads and merges them again, and no other copies."""
    names = [node.op_type for node in traced[LANGUAGE_MODEL][1].graph]
    first, second = [place for place, name in enumerate(names) if name == "GroupQueryAttention"][:2]
    norm = {"Pow": 1, "ReduceMean": 1, "Add": 1, "Sqrt": 1, "Reciprocal": 1, "Mul": 2}
    rotation = {"Reshape": 2, "Slice": 2, "Mul": 4, "Sub": 1, "Add": 1, "Concat": 1}
    products = {"MatMul": 4, "Split": 1, "Gelu": 1, "Add": 2}
    expected = Counter(products)
    for part in (norm, norm, rotation, rotation):
        expected.update(part)
    assert Counter(names[first + 1 : second]) == expected


def test_a_cross_attention_layer_has_few_operators(traced: Any) -> None:
    """Count two norms, four products and one operator of attention; the gates are gone."""
    nodes = list(traced[LANGUAGE_MODEL][1].graph)
    start = next(place for place, node in enumerate(nodes) if any(
        value is not None and value.name.endswith("cross_attention.layers.2.attention_norm.weight")
        for value in node.inputs))
    end = next(place for place, node in enumerate(nodes) if any(
        value is not None and value.name.endswith("layers.2.attention.query.weight.transposed" + MERGED)
        for value in node.inputs))
    names = Counter(node.op_type for node in nodes[start:end])
    norm = Counter({"Pow": 1, "ReduceMean": 1, "Add": 1, "Sqrt": 1, "Reciprocal": 1, "Mul": 2})  # the next layer's
    assert names - norm == {"LayerNormalization": 2, "MatMul": 4, "MultiHeadAttention": 1, "Relu": 1, "Pow": 1,
                            "Mul": 1, "Add": 2}


def test_the_language_model_has_no_operator_that_copies_in_vain(traced: Any) -> None:
    counts = operators(traced[LANGUAGE_MODEL][1])
    assert counts["Transpose"] == counts["Tanh"] == counts["Softmax"] == counts["Gemm"] == 0
    assert counts["MatMul"] == 3 * 4 + 2 * 4 + 1
    assert counts["Reshape"] == 3 * 4
    assert counts["Split"] == counts["GroupQueryAttention"] == 3
    assert sum(counts.values()) <= 217, "seven of them choose the greedy token"


def test_the_resampler_computes_all_keys_and_values_in_one_product(traced: Any) -> None:
    graph = traced[RESAMPLER][1].graph
    merged = {name: value for name, value in graph.initializers.items() if name.endswith(MERGED)}
    parts = [[part for part, _ in parts_of(value)] for value in merged.values()]
    assert ["resampler.layers.0.key.weight", "resampler.layers.0.value.weight"] in parts
    assert [f"cross_attention.layers.{layer}.{part}.weight" for layer in (0, 2) for part in ("key", "value")] in parts
    # input, query, keys and values, output, two of the feed-forward, the media's; one of the embeddings of frames
    assert operators(traced[RESAMPLER][1])["MatMul"] == 7 + 1


def test_names_lead_back_to_the_models_tensors(traced: Any, stored: StoredModel) -> None:
    assert tensor_name("model.language.head.weight.transposed") == "language.head.weight"
    found = [part for name in GRAPHS for value in traced[name][1].graph.initializers.values()
             for part, _ in parts_of(value)]
    matrices = [name for name, tensor in stored.tensors.items() if len(tensor.shape) == 2]
    assert len(matrices) > 25
    for name in matrices:
        assert found.count(name) == 1, name
