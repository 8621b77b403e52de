"""Encoders of other projects: their features are those of the module, and what cannot be used is refused by name."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from made_encoders import (
    CELLS,
    FORMS,
    PREPROCESSING,
    SIDE,
    WIDTH,
    Encoder,
    encoder_graph,
    features_of,
    imported,
    with_weights_beside,
    written,
)
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from flamingo_rt.config import ExternalVisionConfig, PreprocessingConfig
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.importing import encoder_facts, onnx_file
from flamingo_rt.importing.external_encoder import import_encoder
from flamingo_rt.model.external_encoder import ExternalEncoder
from flamingo_rt.model.flamingo import make_vision_encoder
from flamingo_rt.training.parts import open_vision_part

PIXELS = torch.randn(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
node = helper.make_node


def opened(folder: Path) -> ExternalEncoder:
    """The encoder of a folder, as a module."""
    part = open_vision_part(folder)
    encoder = make_vision_encoder(part.config)
    encoder.load_state_dict({"graph": part.tensors["vision.graph"].read()})
    return encoder


def assert_same(folder: Path, module: Encoder, pixels: Tensor = PIXELS) -> None:
    with torch.no_grad():
        torch.testing.assert_close(opened(folder)(pixels), features_of(module, pixels), atol=1e-6, rtol=0)


@pytest.fixture
def take(tmp_path: Path) -> Callable[..., ExternalVisionConfig]:
    """Import a model or a file to ``out``."""
    def call(source: onnx.ModelProto | Path | nn.Module, **options) -> ExternalVisionConfig:
        if isinstance(source, onnx.ModelProto):
            source = written(tmp_path / "encoder.onnx", source)
        return import_encoder(source, tmp_path / "out", options.pop("image_size", SIDE), PREPROCESSING, **options)

    return call


@pytest.fixture
def refusal(take: Callable[..., ExternalVisionConfig], tmp_path: Path) -> Callable[..., str]:
    """Import what must be refused with nothing written; gives the message."""
    def call(source: onnx.ModelProto | Path | nn.Module, **options) -> str:
        if isinstance(source, onnx.ModelProto):
            source = written(tmp_path / "encoder.onnx", source)
        before = sorted(tmp_path.iterdir())
        with pytest.raises(DataError) as caught:
            take(source, **options)
        assert sorted(tmp_path.iterdir()) == before
        if isinstance(source, Path):
            assert str(source) in str(caught.value)
        return str(caught.value)

    return call


# Features


@pytest.mark.parametrize("form", FORMS)
def test_features_are_those_of_the_module(take, tmp_path: Path, form: str) -> None:
    module = Encoder(form)
    config = take(encoder_graph(module))
    assert (config.features, config.width) == ((1 if form == "vector" else CELLS), WIDTH)
    assert_same(tmp_path / "out", module)
    assert open_vision_part(tmp_path / "out").preprocessing == PREPROCESSING


@pytest.mark.parametrize("form", FORMS)
def test_graphs_of_old_versions_of_onnx_are_taken(take, tmp_path: Path, form: str) -> None:
    take(encoder_graph(Encoder(form), opset=9))
    assert_same(tmp_path / "out", Encoder(form))


def test_a_module_is_exported_silently_and_left_as_it_was(take, tmp_path: Path, capfd, caplog, recwarn) -> None:
    module = Encoder()
    module.mix.eval()
    with caplog.at_level(logging.INFO):
        config = take(module)
    assert_same(tmp_path / "out", module)
    assert (module.training, module.mix.training) == (True, False)
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert (capfd.readouterr(), caplog.records, list(recwarn)) == (("", ""), [], [])
    assert config.digest == take(encoder_graph(module, prefix="other.names."), overwrite=True).digest
    content = open_vision_part(tmp_path / "out").tensors["vision.graph"].read().numpy().tobytes()
    assert b".py" not in content  # stack traces name local files


def test_a_module_that_cannot_be_exported_is_refused(refusal) -> None:
    class Broken(nn.Module):
        def forward(self, pixel_values: Tensor) -> Tensor:
            raise KeyError("nothing works")

    assert "the module cannot be exported for pictures of 16 pixels" in refusal(Broken())


def test_the_sizes_are_measured_and_counted(take) -> None:
    module = Encoder("tokens")
    config = take(encoder_graph(module))
    assert config.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert config.multiply_adds == CELLS * WIDTH * (3 * 4 * 4 + WIDTH * 9)
    assert config.image_size == SIDE


def test_the_digest_is_of_the_weights_alone(take) -> None:
    found = take(encoder_graph(Encoder()))
    other_names = take(encoder_graph(Encoder(), given="x", made="y", prefix="module.", opset=17), overwrite=True)
    assert found.digest == other_names.digest == take(encoder_graph(Encoder("tokens")), overwrite=True).digest
    assert found.digest != take(encoder_graph(Encoder(seed=1)), overwrite=True).digest


def test_one_of_several_outputs_is_taken_and_the_rest_left_out(take, refusal, tmp_path: Path) -> None:
    module = Encoder()
    model = encoder_graph(module, after=[node("GlobalAveragePool", ["embedding"], ["pooled"])],
                          outputs=["pooled", "embedding"])
    assert "has the outputs pooled [], embedding []: say which one is taken" in refusal(model)
    assert "there is no 'last' among them" in refusal(model, output="last")
    assert take(model, output="embedding").features == CELLS
    assert_same(tmp_path / "out", module)
    graph = onnx.load_from_string(open_vision_part(tmp_path / "out").tensors["vision.graph"].read().numpy().tobytes())
    assert "GlobalAveragePool" not in {each.op_type for each in graph.graph.node}


@pytest.mark.parametrize("linked", [False, True])
def test_weights_in_a_file_beside_the_graph_are_taken_in(take, tmp_path: Path, linked: bool) -> None:
    path = with_weights_beside(tmp_path / "encoder.onnx", encoder_graph(Encoder()))
    if linked:  # as in the Hugging Face cache
        (tmp_path / "blobs").mkdir()
        for name in ("encoder.onnx", "weights.bin"):
            (tmp_path / name).rename(tmp_path / "blobs" / name[::-1])
            (tmp_path / name).symlink_to(Path("blobs") / name[::-1])
    take(path)
    path.unlink()
    (tmp_path / "weights.bin").unlink()
    assert_same(tmp_path / "out", Encoder())


@pytest.mark.parametrize("form", FORMS)
def test_values_that_are_named_as_in_the_contract_already_keep_their_meaning(take, tmp_path: Path, form: str) -> None:
    """The picture is called features, the features pixel_values, and a weight too."""
    module = Encoder(form)
    model = encoder_graph(module, given="features", made="pixel_values")
    take(model)
    assert_same(tmp_path / "out", module)
    model = encoder_graph(module)
    for each in model.graph.node:
        for names in (each.input, each.output):
            names[:] = ["features" if name == "relu" else "pixel_values" if name == "w.mix" else name for name in names]
    next(tensor for tensor in model.graph.initializer if tensor.name == "w.mix").name = "pixel_values"
    take(model, overwrite=True)
    assert_same(tmp_path / "out", module)


def test_names_that_would_be_given_are_left_to_those_who_have_them(take, tmp_path: Path) -> None:
    model = encoder_graph(Encoder(), given="features")
    names = {"patches": "features.theirs", "relu": "features.shape", "w.mix": "features.theirs.4", "w.patches.bias":
             "features.shape.0"}
    for each in model.graph.node:
        for place in (each.input, each.output):
            place[:] = [names.get(name, name) for name in place]
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    take(model)
    assert_same(tmp_path / "out", Encoder())


def test_weights_that_are_inputs_too_are_no_further_inputs(take, tmp_path: Path) -> None:
    weights = [helper.make_tensor_value_info("w.mix", TensorProto.FLOAT, (WIDTH, WIDTH, 3, 3))]
    take(encoder_graph(Encoder(), inputs=weights))
    assert_same(tmp_path / "out", Encoder())


def test_what_was_written_can_be_imported_again(take, tmp_path: Path) -> None:
    first = take(encoder_graph(Encoder()))
    content = open_vision_part(tmp_path / "out").tensors["vision.graph"].read().numpy().tobytes()
    (tmp_path / "again.onnx").write_bytes(content)
    assert take(tmp_path / "again.onnx", overwrite=True) == first
    assert open_vision_part(tmp_path / "out").tensors["vision.graph"].read().numpy().tobytes() == content


# Refusals


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x00" * 100, b"PK\x03\x04" * 10, None], ids=repr)
def test_a_file_that_is_no_model_is_refused(refusal, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(encoder_graph(Encoder()).SerializeToString()[:-100] if content is None else content)
    assert "is not an ONNX model" in refusal(path)


def test_a_file_that_cannot_be_read_is_refused(refusal, tmp_path: Path) -> None:
    assert "cannot read" in refusal(tmp_path / "absent.onnx")
    assert "cannot read" in refusal(tmp_path)


@pytest.mark.parametrize(("change", "message"), [
    ({"shape": ("N", SIDE, SIDE, 3)}, "the input image of .* is float32 [N, 16, 16, 3]; an encoder takes float32"),
    ({"shape": ("N", 3, 8, 8)},
     "is float32 [N, 3, 8, 8]; an encoder takes float32 [N, 3, 16, 16]: give its image size"),
    ({"shape": ("N", 3, SIDE)}, "is float32 [N, 3, 16]"),
    ({"dtype": TensorProto.FLOAT16}, "is float16 [batch, 3, 16, 16]; an encoder takes float32"),
    ({"dtype": TensorProto.UINT8}, "is uint8 "),
    ({"shape": (2, 3, SIDE, SIDE)}, "is [2, 3, 16, 16], 2 pictures at a time: export it with a dynamic first"),
    ({"inputs": [helper.make_tensor_value_info("mask", TensorProto.FLOAT, ("N", 4))]},
     "has the inputs image [batch, 3, 16, 16], mask [N, 4]: an encoder has one"),
])
def test_another_input_is_refused(refusal, change, message: str) -> None:
    found = refusal(encoder_graph(Encoder(), **change))
    for part in message.split(".*"):
        assert part in found


@pytest.mark.parametrize(("after", "message"), [
    ([node("ReduceMean", ["embedding"], ["out"], axes=[1, 2, 3], keepdims=0)], "gives out float32 [2] for 2 pictures"),
    ([node("Unsqueeze", ["embedding", "axis"], ["out"])], "gives out float32 [2, 1, 24, 4, 4] for 2 pictures"),
    ([node("Sub", ["embedding", "embedding"], ["zero"]), node("Div", ["zero", "zero"], ["out"])], "are not finite"),
    ([node("Cast", ["embedding"], ["out"], to=TensorProto.FLOAT16)], "gives out float16 [2, 24, 4, 4] for 2 pictures"),
    ([node("ReduceMean", ["embedding"], ["mean"], axes=[0]), node("Sub", ["embedding", "mean"], ["out"])],
     "gives a picture other features alone than among others"),
    ([node("BatchNormalization", ["embedding", "scale", "zeros", "zeros", "scale"], ["out", "mean", "var"],
           training_mode=1)], "without dropout or batch norms of training"),
    ([node("RandomNormalLike", ["embedding"], ["noise"], scale=1e-3), node("Add", ["embedding", "noise"], ["out"])],
     "gives other features each time that it runs"),
    ([node("RandomNormalLike", ["embedding"], ["noise"], seed=1.0), node("Add", ["embedding", "noise"], ["out"])],
     "gives other features each time that it runs"),
    ([node("Reshape", ["embedding", "fixed"], ["out"])], "does not run on [3, 3, 16, 16]"),
    ([node("SequenceConstruct", ["embedding"], ["out"])], "gives a list, not features: take another output"),
    ([node("If", ["no"], ["out"])], "it has the operator 'If', control flow"),
    ([node("Loop", ["count"], ["out"])], "it has the operator 'Loop', control flow that may never end"),
    ([node("ReduceMean", ["embedding"], ["out"], axes=[2])],
     "[2, 24, 1, 4] for 2 square pictures: as [N, C, h, w] 1 x 4 cells of width 24, as [N, h, w, C] 24 x 1 cells of"),
    ([node("Transpose", ["embedding"], ["out"], perm=[0, 2, 3, 1])],
     "as [N, C, h, w] 4 x 24 cells of width 4, as [N, h, w, C] 4 x 4 cells of width 24"),
    ([node("MatMul", ["embedding", "axis"], ["out"])], "ONNX Runtime "),
    ([node("Identity", ["nowhere"], ["out"])], "encoder.onnx"),
    ([node("NoSuchOperator", ["embedding"], ["out"])], "encoder.onnx"),
    ([node("ComplexMul", ["embedding"], ["out"], domain="com.microsoft")],
     "it has the operator 'ComplexMul' of 'com.microsoft', which is not exported"),
    ([node("Own", ["embedding"], ["out"], domain="my.ops")], "it has the operator 'Own' of 'my.ops'"),
], ids=lambda value: value if isinstance(value, str) else value[0].op_type)
def test_features_of_another_kind_are_refused(refusal, after, message: str) -> None:
    weights = [numpy_helper.from_array(array, name) for name, array in (
        ("axis", np.array([1], np.int64)), ("scale", np.ones(WIDTH, np.float32)),
        ("zeros", np.zeros(WIDTH, np.float32)), ("fixed", np.array([2, WIDTH, CELLS], np.int64)),
    )]
    model = encoder_graph(Encoder(), after=after, outputs=["out"], weights=weights, opset=15 if any(
        each.op_type == "BatchNormalization" for each in after) else 13, domains=("com.microsoft", "my.ops"))
    if after[0].op_type == "Cast":
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    if after[0].op_type == "SequenceConstruct":
        kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
        model.graph.output[0].type.CopyFrom(kind)
    found = refusal(model)
    assert message in found
    assert len(found) < 1000


def test_a_picture_of_another_size_is_refused(refusal) -> None:
    """A graph of any size says nothing, and must run."""
    model = encoder_graph(Encoder("tokens"), shape=("N", 3, "H", "W"))
    assert "does not run on" in refusal(model, image_size=2)


def test_features_that_are_not_as_expected_are_refused_with_both_numbers(refusal, take) -> None:
    model = encoder_graph(Encoder())
    assert "gives 16 features of width 24 for a picture of 16 pixels, not 81 of 1280" in refusal(
        model, features=(81, 1280))
    assert take(model, features=(CELLS, WIDTH)).width == WIDTH


@pytest.mark.parametrize("location", [
    "../weights.bin", "sub/weights.bin", "/etc/passwd", "", ".", "..", "a\\b", "none", 300 * "a"],
    ids=lambda name: name[:20])
def test_weights_outside_of_the_graphs_folder_are_not_read(refusal, tmp_path: Path, location: str) -> None:
    folder = tmp_path / "sub"
    folder.mkdir()
    path = with_weights_beside(folder / "encoder.onnx", encoder_graph(Encoder()))
    shutil.copy(folder / "weights.bin", tmp_path)  # so that "../weights.bin" is there
    (folder / "sub").mkdir()
    shutil.move(folder / "weights.bin", folder / "sub")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = location
    assert f"takes weights from {location!r}, and there is no such file beside it" in refusal(written(path, model))


def test_weights_of_an_operator_are_held_to_the_same(refusal, tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.ones(WIDTH, np.float32))
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value="../secret")
    model = encoder_graph(Encoder(), after=[node("Constant", [], ["c"], value=tensor),
                                            node("Identity", ["embedding"], ["out"])], outputs=["out"])
    assert "takes weights from '../secret'" in refusal(model)


@pytest.mark.parametrize(("key", "value"), [
    ("offset", "100000000"), ("offset", "-1"), ("length", "99999999"), ("length", "-5"), ("length", "x")])
def test_weights_that_are_cut_short_are_refused(refusal, tmp_path: Path, key: str, value: str) -> None:
    path = with_weights_beside(tmp_path / "encoder.onnx", encoder_graph(Encoder()))
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == key:
            entry.value = value
    assert "it is cut short, or another graph's" in refusal(written(path, model))


def test_weights_of_another_size_than_they_say_are_refused(refusal) -> None:
    model = encoder_graph(Encoder())
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    refusal(model)


@pytest.mark.parametrize("size", [0, -1, 2049, 10**9, 10**30])
def test_a_picture_of_a_size_that_no_model_has_is_refused_before_anything_is_read(take, tmp_path: Path, size) -> None:
    with pytest.raises(UsageError, match=f"image_size is {size}; it must be from 1 to 2048"):
        take(tmp_path / "absent.onnx", image_size=size)


def test_a_graph_that_gives_its_input_back_or_has_no_weights_is_refused(refusal) -> None:
    assert "gives its input image back" in refusal(encoder_graph(Encoder(), outputs=["image"]))
    pooled = encoder_graph(Encoder(), after=[node("GlobalAveragePool", ["image"], ["out"])], outputs=["out"])
    assert "has no weights" in refusal(pooled)


def test_weights_that_are_constants_count_as_others_do(take, tmp_path: Path) -> None:
    first = take(encoder_graph(Encoder()))
    model = encoder_graph(Encoder())
    constants = [node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer]
    others = list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend([*constants, *others])
    found = take(model, overwrite=True)
    assert (found.digest, found.parameters) == (first.digest, first.parameters)
    assert_same(tmp_path / "out", Encoder())


def test_small_constants_beside_weights_do_not_count(take) -> None:
    weights = numpy_helper.from_array(np.ones((WIDTH, 1, 1), np.float32), "ones")
    after = [node("Constant", [], ["ones"], value=weights), node("Mul", ["embedding", "ones"], ["out"])]
    assert take(encoder_graph(Encoder(), after=after, outputs=["out"])).digest == take(
        encoder_graph(Encoder()), overwrite=True).digest


def test_a_graph_that_is_too_large_without_its_weights_for_a_bundle_is_refused(refusal, monkeypatch) -> None:
    monkeypatch.setattr(encoder_facts, "MOST_BYTES", 300)
    assert "bytes without its weights, more than the 300 that a bundle's graph may have" in refusal(
        encoder_graph(Encoder()))


def test_more_than_a_graph_can_hold_is_refused_unread(refusal, tmp_path: Path, monkeypatch) -> None:
    path = with_weights_beside(tmp_path / "encoder.onnx", encoder_graph(Encoder()))
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 20_000)
    assert "with its weights, more than 20,000 that a graph can hold" in refusal(path)
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 100)
    assert "more than 100: put its weights beside it" in refusal(path)


def test_an_existing_output_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="--overwrite"):
        import_encoder(tmp_path / "absent.onnx", tmp_path / "out", SIDE, PreprocessingConfig())


# As a module of the model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return imported(tmp_path_factory.mktemp("encoder"))


def test_the_encoder_has_no_parameters_and_gives_no_gradients(folder: Path) -> None:
    encoder = opened(folder)
    assert list(encoder.parameters()) == []
    assert list(encoder.state_dict()) == ["graph"]
    assert not encoder(PIXELS.clone().requires_grad_()).requires_grad


def test_features_are_of_the_type_of_the_pixels(folder: Path) -> None:
    encoder = opened(folder).bfloat16()
    assert encoder.graph.dtype == torch.uint8
    found = encoder(PIXELS.bfloat16())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, encoder(PIXELS.bfloat16().float()).bfloat16())


def test_copies_run_on_their_own(folder: Path) -> None:
    encoder = opened(folder)
    expected = encoder(PIXELS)
    copied = copy.deepcopy(encoder)
    encoder.graph.zero_()
    assert torch.equal(copied(PIXELS), expected)


@pytest.mark.parametrize("assign", [False, True])
def test_another_graph_takes_the_place_of_the_first(folder: Path, tmp_path: Path, assign: bool) -> None:
    encoder, other = opened(folder), opened(imported(tmp_path, Encoder(seed=1)))
    before = encoder(PIXELS)
    encoder.load_state_dict(other.state_dict(), assign=assign)
    assert torch.equal(encoder(PIXELS), other(PIXELS))
    assert not torch.equal(encoder(PIXELS), before)
    with torch.inference_mode():
        encoder.load_state_dict(opened(folder).state_dict(), assign=assign)
        found = encoder(PIXELS)
    assert torch.equal(found, before)


def test_a_graph_that_was_damaged_or_exchanged_is_refused(folder: Path, tmp_path: Path) -> None:
    encoder = opened(folder)
    encoder.graph.zero_()
    with pytest.raises(DataError, match="the external encoder's graph"):
        encoder(PIXELS)
    encoder.graph = opened(imported(tmp_path, Encoder("vector"))).graph
    with pytest.raises(DataError, match=r"gives features \[5, 1, 24\], and its config.json says \[5, 16, 24\]"):
        encoder(PIXELS)


def test_the_folder_holds_what_its_config_says(folder: Path) -> None:
    described = json.loads((folder / "config.json").read_text())
    part = open_vision_part(folder)
    assert described == {"kind": "vision", "vision": asdict(part.config),
                         "preprocessing": json.loads(json.dumps(asdict(PREPROCESSING)))}
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert part.tensors["vision.graph"].shape == (part.config.graph_bytes,)
