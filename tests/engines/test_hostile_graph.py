"""A stranger's graph that fails while it runs: what its names hold does not reach the terminal."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import flamingo_rt
from flamingo_rt import Image
from flamingo_rt.child_process import child_environment
from flamingo_rt.errors import FlamingoError
from flamingo_rt.loading import PACKAGED_BUNDLE

ESCAPE = "\x1b]52;c;ZXZpbA==\x07"  # writes the clipboard


def bundle_with(folder: Path, nodes: list[onnx.NodeProto], initializer: onnx.TensorProto) -> Path:
    """The packaged model, with nodes behind its resampler's first output: they read ``before`` and write ``behind``."""
    bundle = folder / "bundle"
    shutil.copytree(PACKAGED_BUNDLE, bundle)
    file = bundle / "resampler.onnx"
    model = onnx.load(file, load_external_data=False)
    graph, output = model.graph, model.graph.output[0].name
    for node in graph.node:
        node.output[:] = ["before" if name == output else name for name in node.output]
    graph.initializer.append(initializer)
    graph.node.extend(nodes)
    graph.node.append(helper.make_node("ReduceMax", ["behind"], ["largest"], keepdims=0))
    graph.node.append(helper.make_node("Add", ["before", "largest"], [output], name="last"))
    file.write_bytes(model.SerializeToString())
    manifest = json.loads((bundle / "manifest.json").read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest["files"]["resampler.onnx"] = {"sha256": digest, "bytes": file.stat().st_size}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


@pytest.fixture
def failing_bundle(tmp_path: Path) -> Path:
    """A bundle with a node that fails at run time."""
    node = helper.make_node("Reshape", ["before", "no_shape_of_it"], ["behind"], name="evil")
    return bundle_with(tmp_path, [node], numpy_helper.from_array(np.array([7, 13, -1]), "no_shape_of_it"))


def test_a_node_that_fails_is_told_of_by_the_error_alone(failing_bundle: Path, capfd) -> None:
    model = flamingo_rt.load(failing_bundle, "ort", threads=1)
    picture = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(FlamingoError, match="resampler"):
        model.generate([Image(picture), "Output:"]).result()
    printed = capfd.readouterr()  # of the process: ONNX Runtime's log goes past Python
    assert printed.out + printed.err == ""


def test_a_node_whose_name_a_terminal_would_obey_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["before"], ["behind"], name=f"evil{ESCAPE}")
    bundle = bundle_with(tmp_path, [node], numpy_helper.from_array(np.array([1]), "unused"))
    with pytest.raises(FlamingoError, match="resampler") as raised:
        flamingo_rt.load(bundle, "ort", threads=1)
    assert ESCAPE not in str(raised.value)


def test_a_graph_that_asks_for_more_than_there_can_be_is_told_of_by_the_error_alone(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([1, 1]), "endless")
    shape.dims[:] = [2**63 - 1]
    expand = helper.make_node("Expand", ["before", "endless"], ["behind"])
    bundle = bundle_with(tmp_path, [expand], shape)
    code = f"import flamingo_rt\nflamingo_rt.load({str(bundle)!r}, 'ort', threads=1)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=child_environment(), check=False
    )
    assert done.returncode == 1
    assert "cannot load" in done.stderr
    assert "[E:onnxruntime" not in done.stderr  # the log of ONNX Runtime itself
