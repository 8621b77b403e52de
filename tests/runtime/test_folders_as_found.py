"""Folders as people have them: links of a download cache, names that are no text, a working folder that is gone."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

import flamingo_rt
from flamingo_rt.bundle import read_bundle, write_manifest
from flamingo_rt.errors import DataError

BLOBS = Path("..") / ".." / "blobs"


def cached(source: Path, top: Path) -> Path:
    """``source`` as the Hugging Face cache has it: ``snapshots/REV/file`` -> ``../../blobs/HASH``."""
    snapshot, blobs = top / "snapshots" / "0a1b2c", top / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in [source] if source.is_file() else source.iterdir():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blobs / digest)
        (snapshot / file.name).symlink_to(BLOBS / digest)
    return snapshot


def tokens(model, picture) -> list[int]:
    return model.generate([picture, "Output:"], max_new_tokens=4).result().tokens


@pytest.fixture(scope="module")
def expected(bundle_folder, pictures) -> list[int]:
    return tokens(flamingo_rt.load(bundle_folder, threads=1), pictures[0])


def test_a_bundle_in_a_download_cache_answers_as_the_bundle_does(bundle_folder, tmp_path, pictures, expected) -> None:
    snapshot = cached(bundle_folder, tmp_path)
    model = flamingo_rt.load(snapshot, threads=1)
    assert tokens(model, pictures[0]) == expected
    assert model.identity == read_bundle(bundle_folder).identity


def test_a_link_to_other_content_is_refused(bundle_folder, tmp_path) -> None:
    snapshot = cached(bundle_folder, tmp_path)
    name = "resampler.onnx.data"
    other = tmp_path / "blobs" / "other"
    other.write_bytes((snapshot / name).read_bytes()[::-1])
    (snapshot / name).unlink()
    (snapshot / name).symlink_to(BLOBS / "other")
    with pytest.raises(DataError, match=f"{name} was changed since the export"):
        flamingo_rt.load(snapshot)


def test_a_checkpoint_in_a_download_cache_answers_as_the_checkpoint_does(
    checkpoint_folder, torch_model, tmp_path, pictures
) -> None:
    model = flamingo_rt.load(cached(checkpoint_folder, tmp_path))
    assert tokens(model, pictures[0]) == tokens(torch_model, pictures[0])


def test_a_compiled_prompt_in_a_download_cache_is_continued(bundle_folder, tmp_path, pictures) -> None:
    model = flamingo_rt.load(bundle_folder, threads=1)
    state = model.prompt([pictures[1], "Output: a red circle<|endofchunk|>"])
    state.save(tmp_path / "shots.prompt")
    linked = cached(tmp_path / "shots.prompt", tmp_path / "cache") / "shots.prompt"
    query = [pictures[0], "Output:"]
    found, direct = (
        model.generate(query, prefix=prefix, max_new_tokens=4).result().tokens
        for prefix in (model.load_prompt(linked), state)
    )
    assert found == direct


def test_a_bundle_whose_folders_name_is_not_utf_8_is_run(bundle_folder, tmp_path, pictures, expected) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/mod\xe8le"))
    try:
        shutil.copytree(bundle_folder, folder)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    assert tokens(flamingo_rt.load(folder, threads=1), pictures[0]) == expected


IN_A_FOLDER_THAT_IS_GONE = """
import os, sys
os.mkdir("gone"); os.chdir("gone"); os.rmdir("../gone")
from flamingo_rt import errors, load
print(load(sys.argv[1], threads=1).generate("Output:", max_new_tokens=1).result().stop_reason)
for path in ("bundle", "."):
    try:
        load(path)
    except errors.DataError as error:
        print(error)
"""


def test_a_working_folder_that_is_gone_is_no_obstacle_to_whole_paths(bundle_folder, tmp_path) -> None:
    command = [sys.executable, "-c", IN_A_FOLDER_THAT_IS_GONE, str(bundle_folder)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answered, named, here = done.stdout.splitlines()
    assert answered == "max_new_tokens"
    assert "there is no model at bundle" in named
    assert here


# Graphs that lie, in bundles whose hashes agree


def with_graph(source: Path, folder: Path, name: str, change) -> Path:
    """A copy of a bundle with a graph changed, and a manifest that agrees."""
    shutil.copytree(source, folder)
    model = onnx.load(folder / f"{name}.onnx", load_external_data=False)
    change(model.graph)
    (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    bundle = read_bundle(source)
    write_manifest(folder, bundle)
    return folder


@pytest.mark.parametrize("location", ["other.data", "../outside.data", "absolute", "link.data"])
def test_weights_that_are_not_in_the_manifest_are_not_loaded(bundle_folder, tmp_path, location) -> None:
    data = (bundle_folder / "resampler.onnx.data").read_bytes()
    (tmp_path / "outside.data").write_bytes(data)
    location = str(tmp_path / "outside.data") if location == "absolute" else location

    def elsewhere(graph: onnx.GraphProto) -> None:
        next(t for t in graph.initializer if t.external_data).external_data[0].value = location

    folder = with_graph(bundle_folder, tmp_path / "bundle", "resampler", elsewhere)
    (folder / "other.data").write_bytes(data)
    (folder / "link.data").symlink_to(tmp_path / "outside.data")
    with pytest.raises(DataError, match=r"resampler\.onnx: it takes weights from '.*', not from 'resampler.onnx.data'"):
        flamingo_rt.load(folder)


def test_a_graph_that_fails_while_it_runs_is_named(bundle_folder, tmp_path, pictures) -> None:
    def other_shape(graph: onnx.GraphProto) -> None:
        shapes = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
        tensor = next(t for t in graph.initializer if t.name in shapes)
        values = numpy_helper.to_array(tensor).copy()
        values[-1] = 7
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        graph.value_info.clear()

    model = flamingo_rt.load(with_graph(bundle_folder, tmp_path / "bundle", "vision_encoder", other_shape))
    with pytest.raises(DataError) as caught:
        model.generate([pictures[0], "Output:"], max_new_tokens=2).result()
    assert "cannot run the vision_encoder on the CPU: " in str(caught.value)
    assert str(caught.value).endswith("export the model again")
    assert "\n" not in str(caught.value)
