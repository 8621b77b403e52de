"""A stranger's graph that fails while it runs: what its names hold does not reach the terminal."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import flamingo_rt
from flamingo_rt import Image
from flamingo_rt.errors import FlamingoError
from flamingo_rt.loading import PACKAGED_BUNDLE

ESCAPE = "\x1b]52;c;ZXZpbA==\x07"  # writes the clipboard


@pytest.fixture
def failing_bundle(tmp_path: Path) -> Path:
    """The packaged model, with a node in its resampler that fails at run time and has a hostile name."""
    bundle = tmp_path / "bundle"
    shutil.copytree(PACKAGED_BUNDLE, bundle)
    file = bundle / "resampler.onnx"
    model = onnx.load(file, load_external_data=False)
    graph, output = model.graph, model.graph.output[0].name
    for node in graph.node:
        node.output[:] = ["before" if name == output else name for name in node.output]
    graph.initializer.append(numpy_helper.from_array(np.array([7, 13, -1]), "no_shape_of_it"))
    graph.node.append(helper.make_node("Reshape", ["before", "no_shape_of_it"], ["bad"], name=f"evil{ESCAPE}"))
    graph.node.append(helper.make_node("ReduceMax", ["bad"], ["largest"], keepdims=0))
    graph.node.append(helper.make_node("Add", ["before", "largest"], [output], name="last"))
    file.write_bytes(model.SerializeToString())
    manifest = json.loads((bundle / "manifest.json").read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest["files"]["resampler.onnx"] = {"sha256": digest, "bytes": file.stat().st_size}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


def test_a_node_that_fails_is_told_of_by_the_error_alone(failing_bundle: Path, capfd) -> None:
    model = flamingo_rt.load(failing_bundle, "ort", threads=1)
    picture = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(FlamingoError, match="resampler"):
        model.generate([Image(picture), "Output:"]).result()
    printed = capfd.readouterr()  # of the process: ONNX Runtime's log goes past Python
    assert printed.out + printed.err == ""
