"""From a checkpoint to a bundle: what is written, what is refused, and what survives a failure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_model import small_checkpoint

from flamingo_rt.bundle import read_bundle
from flamingo_rt.contract import GRAPHS, graph_specs
from flamingo_rt.engines.ort import OrtEngine
from flamingo_rt.errors import DataError, ParityError, UsageError
from flamingo_rt.export import parity
from flamingo_rt.export.graphs import export_graphs
from flamingo_rt.export.pipeline import export_checkpoint
from flamingo_rt.loading import load


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "small"
    export_checkpoint(checkpoint, out)
    return out


def test_the_bundle_holds_three_graphs_with_the_contracts_names_and_shapes(bundle: Path) -> None:
    read = read_bundle(bundle)
    for name, spec in graph_specs(read.config).items():
        graph = onnx.load(read.graph_path(name), load_external_data=False).graph
        for values, tensors in ((graph.input, spec.inputs), (graph.output, spec.outputs)):
            assert [v.name for v in values] == [t.name for t in tensors]
            for value, tensor in zip(values, tensors, strict=True):
                dimensions = value.type.tensor_type.shape.dim
                assert tuple(d.dim_param or d.dim_value for d in dimensions) == tensor.shape
                assert onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) == np.dtype(tensor.dtype)


def test_the_graphs_hold_no_path_of_the_machine_that_wrote_them(bundle: Path) -> None:
    for file in bundle.iterdir():
        assert str(Path(__file__).parent.parent).encode() not in file.read_bytes(), file.name
        assert b"site-packages" not in file.read_bytes(), file.name


def test_the_language_model_keeps_its_cache_through_the_fused_operator(bundle: Path) -> None:
    read = read_bundle(bundle)
    graph = onnx.load(read.graph_path("language_model"), load_external_data=False).graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("GroupQueryAttention") == read.config.language.layers


def test_weights_stand_outside_the_graph_files(bundle: Path) -> None:
    for name in GRAPHS:
        assert (bundle / f"{name}.onnx").stat().st_size < 200_000
        assert (bundle / f"{name}.onnx.data").is_file()


def test_the_manifest_records_a_small_deviation_for_every_graph(bundle: Path) -> None:
    found = json.loads((bundle / "manifest.json").read_text())["parity"]
    assert set(found) == set(GRAPHS)
    assert all(0 <= value < 1e-5 for value in found.values())


def test_an_existing_output_is_kept_unless_asked(bundle: Path, checkpoint: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match="--overwrite"):
        export_checkpoint(checkpoint, bundle)
    assert (bundle / "manifest.json").read_bytes() == before


def test_an_unknown_lowering_lists_the_known_ones(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="known: ort"):
        export_checkpoint(checkpoint, tmp_path / "out", lowering="nonsense")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_with_the_wrong_tokenizer_is_refused_before_any_work(checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in checkpoint.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        export_checkpoint(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["vision", "resampler", "language"])
def test_a_graph_that_deviates_is_named_and_nothing_is_written(
    part: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Export a model, then change one weight of the reference: the comparison must see it."""
    import flamingo_rt.export.pipeline as pipeline

    def export_then_change(model, *arguments):
        paths = export_graphs(model, *arguments)
        matrices = [p for p in getattr(model, part).parameters() if p.ndim >= 2]
        with torch.no_grad():
            matrices[-1].flatten()[0] += 0.5
        return paths

    monkeypatch.setattr(pipeline, "export_graphs", export_then_change)
    graph = {"vision": "vision_encoder", "resampler": "resampler", "language": "language_model"}[part]
    with pytest.raises(ParityError, match=f"graph {graph}, tensor .*deviates"):
        export_checkpoint(checkpoint, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_parity_covers_the_prompts_that_matter() -> None:
    cases = parity.CASES
    assert any(not any(case.visuals) for case in cases), "no picture"
    assert any(len(row) == 1 for case in cases for row in case.visuals), "one"
    assert any(len(row) > 2 for case in cases for row in case.visuals), "several"
    assert any(case.frames > 1 for case in cases), "clips"
    assert any(len(set(case.lengths)) > 1 for case in cases), "ragged batch"
    assert any(max(case.pieces) > 1 for case in cases), "continuation"


def test_a_bundle_answers_like_its_checkpoint(bundle: Path, checkpoint: Path) -> None:
    prompts = ["Output: a", "Question: how", "the picture shows"]
    fast, slow = (load(path).generate_batch(prompts, max_new_tokens=12) for path in (bundle, checkpoint))
    assert [row.tokens for row in fast] == [row.tokens for row in slow]
    assert min(len(set(row.tokens)) for row in fast) > 3, "tokens that do not vary show nothing"


def test_buffers_of_the_wrong_type_are_refused_before_they_are_bound(bundle: Path) -> None:
    read = read_bundle(bundle)
    engine = OrtEngine({name: read.graph_path(name) for name in GRAPHS}, read.config)
    side = read.config.vision.image_size
    features = np.empty(graph_specs(read.config)["vision_encoder"].output("features").resolve({"N": 1}), np.float32)
    for pixels in (np.zeros((1, 3, side, side)), np.zeros((1, 3, side, 2 * side), np.float32)[..., ::2]):
        with pytest.raises(ValueError, match="pixel_values"):
            engine.bind("vision_encoder", {"pixel_values": pixels}, {"features": features})


def test_a_kill_during_export_leaves_the_old_bundle(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for file in bundle.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    # Stops for good in the middle: the graphs are written, the manifest is not.
    code = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        import flamingo_rt.export.pipeline as pipeline
        def halt(*_):
            print("reached", flush=True)
            time.sleep(600)
        pipeline.export_graphs = lambda model, folder, *_: ((folder / "half.onnx").write_bytes(b"x"), halt())
        pipeline.export_checkpoint(Path({str(checkpoint)!r}), Path({str(out)!r}), overwrite=True)
    """)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "reached"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    read_bundle(out)  # verifies every hash
    export_checkpoint(checkpoint, out, overwrite=True)  # what the killed run left is no obstacle
    read_bundle(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
