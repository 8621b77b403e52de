"""Free dimensions are fixed in the bytes of an ONNX file as the onnx package would."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from flamingo_rt.contract import GRAPHS
from flamingo_rt.engines.tensorrt.builder import with_sizes


def expected(model: onnx.ModelProto, sizes: dict[str, int]) -> onnx.ModelProto:
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in sizes:
                dimension.dim_value = sizes[dimension.dim_param]  # of a oneof: the other one goes
    return model


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("sizes", [{"C": 70}, {"C": 300, "B": 1}, {}])
def test_it_is_what_the_onnx_package_makes(exported, graph: str, sizes: dict[str, int]) -> None:
    model = (exported("tensorrt", "fp16") / f"{graph}.onnx").read_bytes()
    assert onnx.load_from_string(with_sizes(model, sizes)) == expected(onnx.load_from_string(model), sizes)


def test_inner_values_are_fixed_too_and_everything_else_is_kept() -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["C", 3, "D"]) for name in "xyz"]
    nodes = [helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.5), helper.make_node("Neg", ["y"], ["z"])]
    graph = helper.make_graph(nodes, "C", values[:1], values[2:], value_info=values[1:2])
    model = helper.make_model(graph, doc_string="C")
    fixed = onnx.load_from_string(with_sizes(model.SerializeToString(), {"C": 1 << 20}))
    assert fixed == expected(model, {"C": 1 << 20})
    assert fixed.graph.value_info[0].type.tensor_type.shape.dim[0].dim_value == 1 << 20


@pytest.mark.parametrize("content", [b"\xff\xff", b"\x3a\x7fshort"])
def test_what_is_no_onnx_file_is_an_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"wire type|cut short"):
        with_sizes(content, {"C": 1})
