"""A bundle with an external encoder: its graph is the given one, and the answers are those of the model in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from made_encoders import CELLS, Encoder, external_checkpoint, features_of, imported
from onnx import numpy_helper

from flamingo_rt.bundle import read_bundle
from flamingo_rt.checkpoints import DTYPES, EXTERNAL_GRAPH, StoredModel
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.export.external_graph import external_graph
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.export.quantization.quantization_options import Quantize
from flamingo_rt.export.random_model import random_model
from flamingo_rt.loading import load
from flamingo_rt.processing.visuals import Image
from flamingo_rt.weights.lazy import in_memory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StoredModel:
    folder = tmp_path_factory.mktemp("external")
    return external_checkpoint(folder / "model", imported(folder))


@pytest.fixture(scope="module")
def bundle_of(model: StoredModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle in a form, exported once for each."""
    folder = tmp_path_factory.mktemp("bundles")

    def bundle(form: str) -> Path:
        if not (folder / form).exists():
            more = {"dtype": form} if form in DTYPES else {
                "quantize": Quantize(form, rounding="nearest", block=32, min_cosine=0.5, max_changed=1.0)}
            export_model(model, folder / form, **more)
        return folder / form

    return bundle


def parts(graph: onnx.GraphProto) -> tuple[list[bytes], dict[str, bytes]]:
    """The operators of a graph, and its weights."""
    nodes = []
    for node in graph.node:
        kept = onnx.NodeProto()
        kept.CopyFrom(node)
        kept.name = ""
        nodes.append(kept.SerializeToString(deterministic=True))
    return nodes, {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in graph.initializer}


FORMS = ["fp32", "fp16", "int8", "int4"]


@pytest.mark.parametrize("form", FORMS)
def test_the_graph_is_the_given_one(bundle_of, model: StoredModel, form: str) -> None:
    given = onnx.load_from_string(model.tensors[EXTERNAL_GRAPH].read().numpy().tobytes())
    found = onnx.load(read_bundle(bundle_of(form)).graph_path("vision_encoder"))
    assert parts(found.graph) == parts(given.graph)
    assert len(given.graph.node) > 3


def test_free_dimensions_get_the_contracts_names(model: StoredModel) -> None:
    given = onnx.load_from_string(model.tensors[EXTERNAL_GRAPH].read().numpy().tobytes())
    for value, name in ((given.graph.input[0], "s1"), (given.graph.output[0], "s77")):
        value.type.tensor_type.shape.ClearField("dim")
        value.type.tensor_type.shape.dim.add().dim_param = name
        for size in (3, 16, 16) if value.name == "pixel_values" else (CELLS, 24):
            value.type.tensor_type.shape.dim.add().dim_value = size
    content = torch.frombuffer(bytearray(given.SerializeToString()), dtype=torch.uint8)
    renamed = StoredModel(model.config, model.tokenizer, {
        **model.tensors, **in_memory({EXTERNAL_GRAPH: content}, Path("renamed"))})
    graph = external_graph(renamed).graph
    assert [str(size) for size in graph.outputs[0].shape] == ["N", str(CELLS), "24"]
    assert [str(size) for size in graph.inputs[0].shape] == ["N", "3", "16", "16"]


@pytest.mark.parametrize("form", FORMS)
def test_its_features_are_those_of_the_module(bundle_of, form: str) -> None:
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = features_of(Encoder(), pixels)
    session = onnxruntime.InferenceSession(read_bundle(bundle_of(form)).graph_path("vision_encoder"))
    found = session.run(["features"], {"pixel_values": pixels.numpy()})[0]
    assert found.shape == (3, CELLS, 24)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6, rtol=0)


def test_the_answers_are_those_of_the_checkpoint(bundle_of, model: StoredModel) -> None:
    bundle, checkpoint = load(bundle_of("fp32"), threads=1), load(next(iter(model.tensors.values())).file.parent)
    answers = set()
    for seed in range(3):
        colours = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        prompt = [Image(colours), "Output:"]
        one, other = (each.generate(prompt, max_new_tokens=8).result().tokens for each in (bundle, checkpoint))
        assert one == other
        answers.add(one)
    assert len(answers) > 1  # the picture was seen


@pytest.mark.parametrize("options", [
    {"lowering": "tensorrt"}, {"lowering": "tensorrt-classic"}, {"lowering": "tensorrt", "compute": "fp16"},
    {"compute": "fp16"}], ids=str)
def test_another_form_of_the_graph_is_refused_before_any_work(model: StoredModel, tmp_path: Path, options) -> None:
    with pytest.raises(UsageError, match="is an external graph in float32, which is exported as it is: leave lowering"):
        export_model(model, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_damaged_graph_is_refused(model: StoredModel) -> None:
    size = model.config.vision.graph_bytes
    spoilt = in_memory({EXTERNAL_GRAPH: torch.full((size,), 255, dtype=torch.uint8)}, Path("weights"))
    with pytest.raises(DataError, match=r"weights: tensor vision\.graph"):
        external_graph(StoredModel(model.config, model.tokenizer, {**model.tensors, **spoilt}))


def test_no_model_is_made_at_random_of_one(model: StoredModel) -> None:
    with pytest.raises(UsageError, match="another project's graph, which cannot be made at random"):
        random_model(model.config)
