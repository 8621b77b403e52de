"""Bytes that a run reads: against graphs made by hand, and the packaged bundle read by the onnx library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flamingo_rt.bundle import WeightBytes, read_description
from flamingo_rt.contract import GRAPHS, RELATIVE_KEYS
from flamingo_rt.export.graph_bytes import graph_weights
from flamingo_rt.loading import PACKAGED_BUNDLE

VOCABULARY, WIDTH = 10, 4


def write_graph(path: Path, tied: bool, external: bool, dtype: type = np.float32) -> Path:
    """logits = table[ids] @ head, where a tied head is the table itself."""
    table = numpy_helper.from_array(np.zeros((VOCABULARY, WIDTH), dtype), "table")
    head = numpy_helper.from_array(np.zeros((WIDTH, VOCABULARY), dtype), "head")
    nodes = [helper.make_node("Gather", ["table", "ids"], ["hidden"])]
    if tied:
        nodes.append(helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]))
    nodes.append(helper.make_node("MatMul", ["hidden", "turned" if tied else "head"], ["logits"]))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("ids", TensorProto.INT64, ["T"])],
        [helper.make_tensor_value_info("logits", kind, ["T", VOCABULARY])], [table] if tied else [table, head],
    )
    model = helper.make_model(graph)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=0)
    return path


@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 4), (np.float16, 2)])
def test_a_token_reads_one_row_of_an_untied_embedding(tmp_path: Path, external: bool, dtype: type, size: int) -> None:
    weights = graph_weights(write_graph(tmp_path / "g.onnx", False, external, dtype))
    matrix = VOCABULARY * WIDTH * size
    assert weights == WeightBytes(stored=2 * matrix, each_run=matrix, each_token=WIDTH * size)
    assert weights.read(3) == matrix + 3 * WIDTH * size


def test_a_tied_embedding_is_read_whole_and_once(tmp_path: Path) -> None:
    matrix = VOCABULARY * WIDTH * 4
    assert graph_weights(write_graph(tmp_path / "g.onnx", True, True)) == WeightBytes(matrix, matrix, 0)


def test_the_weights_data_is_not_read(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "g.onnx", False, True)
    (tmp_path / "g.onnx.data").unlink()
    assert graph_weights(path).stored == 2 * VOCABULARY * WIDTH * 4


def weights_of(path: Path, nodes: list[onnx.NodeProto], **constants: np.ndarray) -> WeightBytes:
    """The weights of a graph of these nodes."""
    graph = helper.make_graph(nodes, "g", [], [], [numpy_helper.from_array(a, name) for name, a in constants.items()])
    onnx.save(helper.make_model(graph), path)
    return graph_weights(path)


def test_a_matrix_of_several_products_is_read_once(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", [x, "matrix"], [f"{x}.y"]) for x in ("x", "z")]
    weights = weights_of(tmp_path / "g.onnx", nodes, matrix=np.zeros((3, 5), np.float32))
    assert weights == WeightBytes(stored=60, each_run=60, each_token=0)


def test_rows_of_several_tables_are_read_for_a_token(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", [table, "ids"], [f"{table}.y"]) for table in ("words", "places")]
    weights = weights_of(
        tmp_path / "g.onnx", nodes, words=np.zeros((9, 4), np.float32), places=np.zeros((7, 2), np.float16)
    )
    assert weights == WeightBytes(stored=144 + 28, each_run=0, each_token=16 + 4)
    assert weights.read(tokens=2) == 40


@pytest.mark.parametrize(
    ("inputs", "axis", "shape"),
    [(["table", "ids"], 1, (6, 4)), (["x", "table"], 0, (6,)), (["table", "ids"], 0, (1, 4)), (["x", "table"], 0, ())],
    ids=["columns", "constant indices", "one row", "a constant index"],
)
def test_other_lookups_read_the_whole_constant(
    tmp_path: Path, inputs: list[str], axis: int, shape: tuple[int, ...]
) -> None:
    node = helper.make_node("Gather", inputs, ["y"], axis=axis)
    size = int(np.prod(shape)) * 8
    weights = weights_of(tmp_path / "g.onnx", [node], table=np.zeros(shape, np.int64))
    assert weights == WeightBytes(stored=size, each_run=size, each_token=0)


@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 4), (np.float16, 2)])
def test_distances_are_read_as_far_as_tokens_are_seen(tmp_path: Path, dtype: type, size: int) -> None:
    """Two layers with three spans of 5 distances each, for 2 heads of 4."""
    names = [f"layers.{layer}.{RELATIVE_KEYS}.{span}.weight" for layer in range(2) for span in range(3)]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["query", name], [f"{name}.scores"]) for name in names], "g",
        [helper.make_tensor_value_info("query", kind, [2, 1, 4])],
        [helper.make_tensor_value_info(f"{names[-1]}.scores", kind, [2, 1, 5])],
        [numpy_helper.from_array(np.zeros((2, 4, 5), dtype), name) for name in names],
    )
    onnx.save(helper.make_model(graph), tmp_path / "g.onnx")
    weights = graph_weights(tmp_path / "g.onnx")
    assert weights == WeightBytes(6 * 2 * 4 * 5 * size, 0, 0, each_distance=2 * 2 * 4 * size)
    assert weights.read(tokens=3, seen=7) == 7 * 2 * 2 * 4 * size
    assert weights.read(tokens=1, seen=15) == weights.stored


@pytest.mark.parametrize("tied", [False, True])
def test_a_token_reads_one_row_of_numbers_and_scales_of_an_embedding_in_blocks(tmp_path: Path, tied: bool) -> None:
    """Use the form that quantization gives an embedding, with an Unsqueeze between the scales and the lookup."""
    blocks, size = 2, 32
    constants = {
        "packed": np.zeros((VOCABULARY, blocks, size // 2), np.uint8),
        "scales": np.zeros((VOCABULARY, blocks), np.float32), "each": np.array([-1], np.int64),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["scales", "each"], ["by_block"]),
        helper.make_node("GatherBlockQuantized", ["packed", "ids", "by_block"], ["hidden"], domain="com.microsoft"),
    ]
    if tied:
        nodes.append(helper.make_node("MatMulNBits", ["x", "packed", "scales"], ["logits"], domain="com.microsoft"))
    weights = weights_of(tmp_path / "g.onnx", nodes, **constants)
    row, axes = blocks * (size // 2 + 4), 8
    stored = VOCABULARY * row + axes
    expected = WeightBytes(stored, stored, 0) if tied else WeightBytes(stored, axes, row)
    assert weights == expected


@pytest.mark.parametrize("name", GRAPHS)
def test_the_packaged_graphs_hold_what_the_onnx_library_finds(name: str) -> None:
    path = PACKAGED_BUNDLE / f"{name}.onnx"
    model = onnx.load(path, load_external_data=False)
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
    external = sum(int(entry.value) for entry in entries if entry.key == "length")
    inline = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    weights = graph_weights(path)
    assert weights.stored == external + inline
    assert weights.each_run == weights.stored  # its head is tied: no table is only looked up in
    assert weights == read_description(PACKAGED_BUNDLE).graphs[name].weight_bytes
    data = (PACKAGED_BUNDLE / f"{name}.onnx.data").stat().st_size
    assert data - 4096 * len(model.graph.initializer) < external <= data  # padded to pages
