"""Graphs from strangers: weights come from one file, operators run no code, and the targets of links are checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from flamingo_rt.contract import GRAPHS
from flamingo_rt.errors import DataError
from flamingo_rt.graph_files import MOST_BYTES, MOST_NESTED, check_graph, read_graph
from flamingo_rt.loading import PACKAGED_BUNDLE
from flamingo_rt.protobuf import LENGTH, VARINT, field

NAME = "graph.onnx.data"
VALUES = np.arange(4, dtype=np.float32)


def external(name: str, entries: dict[str, str] | None = None, location: str = NAME) -> TensorProto:
    """A float32 tensor [4] that lies outside."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in ({"location": location, "offset": "0", "length": "16"} | (entries or {})).items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def inline(name: str, kind: int = TensorProto.FLOAT) -> TensorProto:
    return helper.make_tensor(name, kind, [4], [0, 1, 2, 3])


def graph(nodes=(), initializers=(), name: str = "inner") -> onnx.GraphProto:
    nodes = nodes or [helper.make_node("Identity", ["x"], ["y"])]
    values = [helper.make_tensor_value_info(each, TensorProto.FLOAT, [4]) for each in "xy"]
    return helper.make_graph(list(nodes), name, values[:1], values[1:], list(initializers))


def model_of(main: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(main, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def constant(**attributes) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], **attributes)


def in_initializer(tensor):
    return model_of(graph(initializers=[tensor]))


def in_constant(tensor):
    return model_of(graph([constant(value=tensor)]))


def in_list_of_tensors(tensor):
    return model_of(graph([constant(values=[inline("a"), tensor])]))


def in_subgraph(tensor):
    inner = graph(initializers=[tensor])
    return model_of(graph([helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=graph())]))


def in_list_of_graphs(tensor):
    return model_of(graph([helper.make_node("If", ["x"], ["y"], branches=[graph(), graph(initializers=[tensor])])]))


def in_sparse_values(tensor):
    model = model_of(graph())
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, inline("i", TensorProto.INT64), [8]))
    return model


def in_sparse_indices(tensor):
    model = model_of(graph())
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(inline("v"), tensor, [8]))
    return model


def in_sparse_attribute(tensor):
    sparse = helper.make_sparse_tensor(tensor, inline("i", TensorProto.INT64), [8])
    return model_of(graph([constant(sparse_value=sparse)]))


def in_sparse_attributes(tensor):
    sparse = helper.make_sparse_tensor(tensor, inline("i", TensorProto.INT64), [8])
    return model_of(graph([constant(sparse_values=[sparse])]))


def in_function(tensor):
    model = model_of(graph())
    function = model.functions.add(name="f", domain="")
    function.node.append(constant(value=tensor))
    return model


def in_functions_default(tensor):
    model = model_of(graph())
    function = model.functions.add(name="f", domain="")
    function.attribute_proto.append(helper.make_attribute("value", tensor))
    return model


def in_training_start(tensor):
    model = model_of(graph())
    model.training_info.add().initialization.initializer.append(tensor)
    return model


def in_training_step(tensor):
    model = model_of(graph())
    model.training_info.add().algorithm.initializer.append(tensor)
    return model


TENSOR_PLACES = [value for name, value in list(globals().items()) if name.startswith("in_")]


def written(folder: Path, model: onnx.ModelProto | bytes, data: bytes | None = VALUES.tobytes()) -> Path:
    path = folder / "graph.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    if data is not None:
        (folder / NAME).write_bytes(data)
    return path


@pytest.mark.parametrize("place", TENSOR_PLACES)
def test_weights_from_elsewhere_are_refused_wherever_a_tensor_can_be(tmp_path, place) -> None:
    (tmp_path / "other").write_bytes(VALUES.tobytes())
    read = read_graph(written(tmp_path, place(external("w"))))
    assert (read.folder, read.linked) == (tmp_path, False)
    with pytest.raises(DataError, match=r"graph.onnx: it takes weights from 'other', not from 'graph.onnx.data' alone"):
        read_graph(written(tmp_path, place(external("w", location="other"))))


@pytest.mark.parametrize("location", [
    "", "../graph.onnx.data", "./graph.onnx.data", "sub/graph.onnx.data", "/etc/hostname", "graph.onnx.data/", "C:x",
    "*/_ORT_MEM_ADDR_/*", "GRAPH.ONNX.DATA", "graph.onnx.data\0", "graph.onnx", "..\\graph.onnx.data",
])
def test_no_other_spelling_of_a_location_is_taken(tmp_path, location) -> None:
    with pytest.raises(DataError, match="it takes weights from "):
        read_graph(written(tmp_path, in_initializer(external("w", location=location))))


@pytest.mark.parametrize("entries", [
    {"offset": "1"}, {"length": "17"}, {"offset": "17", "length": "0"}, {"offset": "-1"}, {"length": "-1"},
    {"offset": "18446744073709551616"}, {"offset": "18446744073709551600"}, {"offset": "0x0"}, {"offset": " 0"},
    {"length": ""}, {"offset": "1e0"}, {"prepacked_0": "w|0|16"}, {"basepath": "/etc"}, {"": "x"},
])
def test_a_place_outside_of_the_file_and_unknown_words_are_refused(tmp_path, entries) -> None:
    with pytest.raises(DataError, match=r"which has 16|of its external data"):
        read_graph(written(tmp_path, in_initializer(external("w", entries))))


def test_a_location_that_is_given_twice_or_not_at_all_is_refused(tmp_path) -> None:
    twice, nowhere = external("w"), external("w")
    twice.external_data.add(key="location", value="other")
    del nowhere.external_data[:]
    for tensor, said in ((twice, "stated twice"), (nowhere, "it takes weights from ''")):
        with pytest.raises(DataError, match=said):
            read_graph(written(tmp_path, in_initializer(tensor)))


def test_a_tensor_with_a_location_is_checked_whether_or_not_it_says_that_it_is_external(tmp_path) -> None:
    tensor = external("w", location="other")
    tensor.data_location = TensorProto.DEFAULT
    with pytest.raises(DataError, match="it takes weights from 'other'"):
        read_graph(written(tmp_path, in_initializer(tensor)))


def test_a_missing_file_of_weights_counts_as_an_empty_one(tmp_path) -> None:
    with pytest.raises(DataError, match=r"of 'graph.onnx.data', which has 0"):
        read_graph(written(tmp_path, in_initializer(external("w")), data=None))
    assert read_graph(written(tmp_path, in_initializer(inline("w")))).model


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


HIDDEN = graph(initializers=[external("w", location="other")]).SerializeToString()


@pytest.mark.parametrize("hidden", [
    varint((7 << 3 | LENGTH) + 2**32) + varint(len(HIDDEN)) + HIDDEN,
    bytes([7 << 3 | LENGTH | 0x80, 0x80, 0x80, 0x80, 0x80, 0]) + varint(len(HIDDEN)) + HIDDEN,
    varint(7 << 3 | 3) + HIDDEN + varint(7 << 3 | 4),
    varint(7 << 3 | LENGTH) + varint(len(HIDDEN) + 1) + HIDDEN,
    varint(1 << 3 | VARINT) + bytes([0xFF] * 9 + [0x7F]),
    field(7, field(5, field(13, "") + varint(14 << 3 | VARINT) + varint(2**32 + 1))),
], ids=["number of a field beyond 32 bits", "number in six bytes", "group", "cut short", "beyond 64 bits",
        "enumeration beyond 32 bits"])
def test_fields_that_readers_could_interpret_differently_are_refused(tmp_path, hidden) -> None:
    """Other readers cut such numbers to their lower bits, and would find a graph that this reader does not check."""
    with pytest.raises(DataError, match=r"cannot load .*graph.onnx"):
        read_graph(written(tmp_path, model_of(graph()).SerializeToString() + hidden))


def test_a_second_graph_which_readers_merge_with_the_first_is_looked_at(tmp_path) -> None:
    model = model_of(graph()).SerializeToString() + field(7, HIDDEN)
    assert onnx.load_from_string(model).graph.initializer[0].external_data[0].value == "other"
    with pytest.raises(DataError, match="it takes weights from 'other'"):
        read_graph(written(tmp_path, model))


@pytest.mark.parametrize("content", [b"\x00", b"not a graph", b"\xff" * 100, b"x" * 999])
def test_a_file_that_is_no_graph_is_refused_by_name(tmp_path, content) -> None:
    with pytest.raises(DataError, match=r"cannot load .*graph.onnx: .*export the model again"):
        read_graph(written(tmp_path, content))


def test_a_graph_of_weights_without_end_is_not_read(tmp_path) -> None:
    path = tmp_path / "graph.onnx"
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(DataError, match="has more than"):
        read_graph(path)


def test_graphs_nested_too_deeply_are_refused(tmp_path) -> None:
    content = b""
    for _ in range(MOST_NESTED):
        content = field(1, field(5, field(6, content)))
    with pytest.raises(DataError, match="nested more than"):
        read_graph(written(tmp_path, field(7, content)))


@pytest.mark.parametrize(("domain", "operator"), [
    ("com.microsoft", "EPContext"), ("com.microsoft", "PythonOp"), ("com.microsoft", "ATen"), ("ai.onnx.contrib", "X"),
    ("trt.plugins", "X"), ("", "Identity"), ("ai.onnx", "Identity"), ("com.microsoft", "MatMulNBits"),
])
def test_operators_that_load_code_are_refused(tmp_path, domain, operator) -> None:
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    inner = model_of(graph([helper.make_node("If", ["x"], ["y"], then_branch=graph([node]), else_branch=graph())]))
    path = written(tmp_path, inner)
    if operator in ("Identity", "MatMulNBits"):
        read_graph(path)
    else:
        with pytest.raises(DataError, match=f"has the operator '{operator}' of '{domain}', which is not exported"):
            read_graph(path)


def test_another_file_of_weights_can_be_named_by_who_reads_the_graph_alone(tmp_path) -> None:
    """Export does so for the graph of its comparison, which shares the original's weights."""
    (tmp_path / "shared.data").write_bytes(VALUES.tobytes())
    path = written(tmp_path, in_initializer(external("w", location="shared.data")), data=None)
    assert read_graph(path, tmp_path / "shared.data").folder == tmp_path
    with pytest.raises(DataError, match=r"it takes weights from 'shared.data'"):
        read_graph(path)


# Links


def session(path: Path) -> onnxruntime.InferenceSession:
    from flamingo_rt.engines.ort import set_weights_folder

    options, read = onnxruntime.SessionOptions(), read_graph(path)
    set_weights_folder(options, read)
    return onnxruntime.InferenceSession(read.model, options, providers=["CPUExecutionProvider"])


def sum_model() -> onnx.ModelProto:
    return model_of(graph([helper.make_node("Add", ["x", "w"], ["y"])], [external("w")], name="sum"))


@pytest.mark.parametrize("linked", [("graph.onnx", NAME), (NAME,), ("graph.onnx",)], ids=["both", "data", "graph"])
@pytest.mark.parametrize("stores", [1, 2])
def test_linked_graphs_and_weights_are_loaded_from_where_they_are(tmp_path, linked, stores) -> None:
    folder = tmp_path / "snapshots" / "rev"
    folder.mkdir(parents=True)
    path = written(folder, sum_model())
    for index, name in enumerate(linked):
        store = tmp_path / f"blobs{index % stores}"
        store.mkdir(exist_ok=True)
        (folder / name).rename(store / f"{index}a1b2c3")
        (folder / name).symlink_to(Path("..") / ".." / store.name / f"{index}a1b2c3")
    assert read_graph(path).linked
    np.testing.assert_array_equal(session(path).run(None, {"x": VALUES})[0], 2 * VALUES)


def test_a_folder_reached_through_a_link_is_no_different(tmp_path) -> None:
    written(tmp_path, sum_model())
    (tmp_path / "link").symlink_to(tmp_path)
    assert not read_graph(tmp_path / "link" / "graph.onnx").linked
    np.testing.assert_array_equal(session(tmp_path / "link" / "graph.onnx").run(None, {"x": VALUES})[0], 2 * VALUES)


def test_a_loop_of_links_is_refused(tmp_path) -> None:
    path = written(tmp_path, sum_model(), data=None)
    (tmp_path / NAME).symlink_to(NAME)
    with pytest.raises(DataError, match=r"cannot load .*graph.onnx"):
        read_graph(path)


def test_a_folder_whose_name_is_not_utf_8_is_no_obstacle(tmp_path) -> None:
    import os

    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    path = written(folder, sum_model())
    assert read_graph(path).beside == os.fsencode(path)
    np.testing.assert_array_equal(session(path).run(None, {"x": VALUES})[0], 2 * VALUES)


@pytest.mark.parametrize("name", GRAPHS)
def test_only_the_location_of_the_weights_changes_for_a_linked_graph(tmp_path, name) -> None:
    source = PACKAGED_BUNDLE / f"{name}.onnx"
    (tmp_path / source.name).symlink_to(source)
    (tmp_path / "blob").symlink_to(PACKAGED_BUNDLE / f"{name}.onnx.data")
    real = tmp_path / "a-longer-name-than-it-had-before"
    real.write_bytes((PACKAGED_BUNDLE / f"{name}.onnx.data").read_bytes())
    (tmp_path / f"{name}.onnx.data").symlink_to(real)
    found = onnx.load_from_string(read_graph(tmp_path / source.name).model)
    expected = onnx.load(source, load_external_data=False)
    entries = [entry for tensor in expected.graph.initializer for entry in tensor.external_data]
    assert entries
    for entry in entries:
        if entry.key == "location":
            entry.value = real.name
    assert found == expected


def test_ort_format_is_not_taken_for_onnx(tmp_path) -> None:
    """ONNX Runtime's own format is another way in: its bytes are recognized by a mark, whatever the file is called."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    model = model_of(graph()).SerializeToString()
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    content = (tmp_path / "model.ort").read_bytes()
    assert onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    with pytest.raises(DataError):
        read_graph(written(tmp_path, content))


def named(place: str, name: str) -> onnx.ModelProto:
    """A model with ``name`` in one place."""
    node = helper.make_node("Identity", ["x"], ["y"], name="node")
    model = model_of(graph([node], [inline("weight")]))
    node, info = model.graph.node[0], model.graph.value_info.add(name="middle")
    if place == "graph":
        model.graph.name = name
    elif place == "node":
        node.name = name
    elif place == "input of a node":
        node.input[0] = name
    elif place == "output of a node":
        node.output[0] = name
    elif place == "attribute":
        node.attribute.append(helper.make_attribute(name, 1))
    elif place == "tensor":
        model.graph.initializer[0].name = name
    elif place == "input":
        model.graph.input[0].name = name
    elif place == "value":
        info.name = name
    elif place == "dimension":
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = name
    else:
        model.functions.add(name=name, domain="")
    return model


PLACES = [
    "graph", "node", "input of a node", "output of a node", "attribute", "tensor", "input", "value", "dimension",
    "function",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["a\x1b]0;title\x07", "a\nb", "a\u202eb", "a\x9b31m"])
def test_a_name_that_a_terminal_would_obey_is_refused_and_shown_as_codes(tmp_path, place, name) -> None:
    file = tmp_path / "graph.onnx"
    file.write_bytes(named(place, "a plain name, größer als 1").SerializeToString())
    read_graph(file)
    file.write_bytes(named(place, name).SerializeToString())
    with pytest.raises(DataError, match="characters that a terminal would obey") as caught:
        read_graph(file)
    assert str(caught.value).isprintable()


# A graph in memory


@pytest.mark.parametrize("place", TENSOR_PLACES)
def test_a_graph_with_its_weights_inside_takes_none_from_a_file(place) -> None:
    if place in (in_subgraph, in_list_of_graphs):
        with pytest.raises(DataError, match="cannot take the encoder: it has the operator 'If', control flow"):
            check_graph(place(inline("w")).SerializeToString(), "the encoder")
        return
    check_graph(place(inline("w")).SerializeToString(), "the encoder")
    with pytest.raises(DataError, match=r"cannot take the encoder: it takes weights from 'graph\.onnx\.data'"):
        check_graph(place(external("w")).SerializeToString(), "the encoder")


def test_a_graph_in_memory_is_held_to_all_else_too() -> None:
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")
    for content, said in (
        (model_of(graph([node])).SerializeToString(), "the operator 'EPContext'"),
        (named("node", "a\x1b[31m").SerializeToString(), "characters that a terminal would obey"),
        (b"no graph", "cannot take the encoder"),
    ):
        with pytest.raises(DataError, match=said):
            check_graph(content, "the encoder")
