"""The export of a checkpoint to a bundle: what is written, what is refused, and what survives a failure."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from wrong_weights import spoil

import flamingo_rt.export.pipeline as pipeline
from flamingo_rt.bundle import read_bundle
from flamingo_rt.checkpoints import DTYPES, StoredModel, open_checkpoint
from flamingo_rt.contract import GRAPHS, graph_specs
from flamingo_rt.engines.ort import OrtBackend
from flamingo_rt.errors import DataError, ParityError, UsageError
from flamingo_rt.export.checks.parity_cases import CASES, STEPS
from flamingo_rt.export.graph_bytes import graph_weights
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.loading import load
from flamingo_rt.model.naive import generate_naively
from flamingo_rt.processing.preprocess import visual_pixels
from flamingo_rt.processing.prompt import build_prompt
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.processing.visuals import Image

GRAPH_FILES = [f"{name}.onnx{suffix}" for name in GRAPHS for suffix in ("", ".data")]


@pytest.fixture
def copied_graphs(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], None]], None]:
    """Let exports copy the graphs of the finished bundle, which takes no time, and apply ``change`` to them."""

    def install(change: Callable[[Path], None]) -> None:
        def copied(stored: StoredModel, folder: Path, *_: object) -> dict[str, Path]:
            for file in GRAPH_FILES:
                shutil.copy(bundle / file, folder)
            change(folder)
            return {name: folder / f"{name}.onnx" for name in GRAPHS}

        monkeypatch.setattr(pipeline, "_write_graphs", copied)

    return install


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


def test_the_bundle_has_the_checkpoints_configuration_and_tokenizer(bundle: Path, stored: StoredModel) -> None:
    read = read_bundle(bundle)
    assert read.config == stored.config
    assert read.tokenizer_path.read_text(encoding="utf-8") == stored.tokenizer


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_manifest_records_a_small_deviation_for_every_graph(bundles: Callable[[str], Path], dtype: str) -> None:
    found = json.loads((bundles(dtype) / "manifest.json").read_text())["parity"]
    assert set(found) == set(GRAPHS)
    assert all(0 <= value < 1e-5 for value in found.values())


def test_an_existing_output_is_kept_unless_asked(bundle: Path, stored: StoredModel) -> None:
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match="--overwrite"):
        export_model(stored, bundle)
    assert (bundle / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"lowering": "nonsense"}, "unknown lowering 'nonsense'; known: ort"),
     ({"dtype": "int3"}, "unknown dtype 'int3'; known: fp32, fp16, bf16"),
     ({"tolerance": 0.0}, "tolerance is 0.0"), ({"tolerance": float("nan")}, "tolerance is nan")],
)
def test_an_unknown_option_is_refused_before_any_work(stored: StoredModel, tmp_path: Path, wrong, message) -> None:
    with pytest.raises(UsageError, match=message):
        export_model(stored, tmp_path / "out", **wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("inside", [False, True])
def test_a_bundle_never_replaces_what_it_is_read_from(checkpoint: Path, tmp_path: Path, inside: bool) -> None:
    """Name the source as the output itself, or as a file in it."""
    source = shutil.copytree(checkpoint, tmp_path / "source")
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    with pytest.raises(UsageError, match="which the model is read from"):
        export_model(open_checkpoint(source), source, overwrite=True,
                     sources=(source / "model.safetensors" if inside else source,))
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before


def test_a_bundle_that_the_disk_cannot_hold_is_refused_before_any_work(
    stored: StoredModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "compute_reference", None)
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk._replace(free=1000))
    with pytest.raises(DataError, match=r"out: .* MB are needed, its disk has .* left"):
        export_model(stored, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_with_the_wrong_tokenizer_is_refused_before_any_work(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "compute_reference", None)
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        export_model(open_checkpoint(broken), tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_that_deviates_is_named_and_nothing_is_written(
    graph: str, stored: StoredModel, tmp_path: Path, copied_graphs
) -> None:
    copied_graphs(lambda folder: spoil(folder / f"{graph}.onnx"))
    with pytest.raises(ParityError, match=f"graph {graph}, tensor .*deviates"):
        export_model(stored, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_every_stage_reports_its_progress_to_the_end(bundle: Path, told: dict[str, tuple[int, list[int]]]) -> None:
    """Progress counts bytes where weights are written, and cases where prompts are computed."""
    graphs = [f"{name} {part}" for name in GRAPHS for part in ("graph", "weights")]
    assert list(told) == ["PyTorch's answers", *graphs, "comparison", "reference outputs", "checksums"]
    for stage, steps in (("PyTorch's answers", STEPS), ("comparison", 2 * len(CASES)), ("reference outputs", 2)):
        assert told[stage] == (steps, [1] * steps)
    for name in GRAPHS:
        total, advances = told[f"{name} weights"]
        assert sum(advances) == (bundle / f"{name}.onnx.data").stat().st_size
        assert 0.9 * total < sum(advances) <= total  # tensors of a few bytes stand in the graph file
        assert len(advances) > 8


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_manifest_states_the_bytes_that_each_graph_reads(bundles: Callable[[str], Path], dtype: str) -> None:
    read = read_bundle(bundles(dtype))
    for name, entry in read.graphs.items():
        assert entry.weight_bytes == graph_weights(read.graph_path(name))
        assert entry.weight_bytes.each_run > 0


def test_license_and_source_are_recorded_as_they_are(stored: StoredModel, tmp_path: Path, copied_graphs) -> None:
    copied_graphs(lambda folder: None)
    words = {"license": "apache-2.0", "source": "https://example.org/weights"}
    export_model(stored, tmp_path / "out", compare=False, **words)
    read = read_bundle(tmp_path / "out")
    assert {"license": read.license, "source": read.source} == words
    assert read.reference is None, "nothing was compared"


@pytest.mark.parametrize("words", [{"license": " "}, {"source": "x" * 3000}])
def test_a_license_or_source_that_is_none_is_refused_before_work(stored: StoredModel, tmp_path: Path, words) -> None:
    with pytest.raises(UsageError, match=f"the {next(iter(words))} has .* characters"):
        export_model(stored, tmp_path / "out", **words)
    assert not list(tmp_path.iterdir())


# Answers


def test_a_bundle_answers_like_its_checkpoint(bundle: Path, checkpoint: Path) -> None:
    prompts = ["Output: a", "Question: how", "the picture shows"]
    fast, slow = (load(path).generate_batch(prompts, max_new_tokens=12) for path in (bundle, checkpoint))
    assert [row.tokens for row in fast] == [row.tokens for row in slow]
    assert min(len(set(row.tokens)) for row in fast) > 3, "tokens that do not vary show nothing"


@pytest.mark.parametrize(("dtype", "recorded"), [
    ("bf16", "bfloat16"), pytest.param("fp16", "float16", marks=pytest.mark.slow),
])
def test_a_bundle_of_half_precision_is_half_as_large(bundles: Callable[[str], Path], dtype: str, recorded: str) -> None:
    assert {entry.dtype for entry in read_bundle(bundles(dtype)).graphs.values()} == {recorded}
    assert {entry.dtype for entry in read_bundle(bundles("fp32")).graphs.values()} == {"float32"}
    sizes = {}
    for path in (bundles("fp32"), bundles(dtype)):
        sizes[path] = sum((path / f"{name}.onnx.data").stat().st_size for name in GRAPHS)
    assert 0.49 < sizes[bundles(dtype)] / sizes[bundles("fp32")] < 0.52


@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_a_bundle_of_half_precision_answers_like_the_rounded_model(
    bundles: Callable[[str], Path], stored: StoredModel, dtype: str
) -> None:
    bundle = bundles(dtype)
    rounded = stored.stored_as(DTYPES[dtype]).load()
    tokenizer = TextTokenizer(bundle / "tokenizer.json", stored.config.tokens, stored.config.language.vocab_size)
    colours = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    pictures = [Image(np.repeat(np.repeat(colour, 4, axis=0), 4, axis=1)) for colour in colours]
    prompts = [["Output: a"], [pictures[0], "Output:"], [pictures[0], "Output: a", pictures[1], "Question: how"]]
    found = load(bundle).generate_batch(prompts, max_new_tokens=12)
    for parts, row in zip(prompts, found, strict=True):
        prompt = build_prompt(parts, tokenizer)
        ids, media_index = prompt.input_ids.tolist(), prompt.media_index.tolist()
        pixels = [torch.from_numpy(visual_pixels(visual, stored.config)) for visual in prompt.visuals]
        assert list(row.tokens) == generate_naively(rounded, ids, media_index, pixels, 12, tokenizer.stop_ids)
        assert len(set(row.tokens)) > 3, "tokens that do not vary show nothing"


# Engines


def arrays(bundle: Path, graph: str, sizes: dict[str, int]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs that every size allows, random where they are numbers, and room for the outputs."""
    spec, generator = graph_specs(read_bundle(bundle).config)[graph], np.random.default_rng(0)
    inputs = {}
    for tensor in spec.inputs:
        shape = tensor.resolve(sizes)
        if tensor.dtype == "float32":
            inputs[tensor.name] = generator.standard_normal(shape, dtype=np.float32)
        else:
            inputs[tensor.name] = generator.integers(0, 3, shape, dtype=tensor.dtype)
    if graph == "language_model":
        inputs["cache_length"][:] = 0
    outputs = {tensor.name: np.zeros(tensor.resolve(sizes), dtype=tensor.dtype) for tensor in spec.outputs}
    return inputs, outputs


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_frugal_engine_computes_the_same(bundles: Callable[[str], Path], dtype: str, graph: str) -> None:
    bundle = bundles(dtype)
    read = read_bundle(bundle)
    results = []
    for frugal in (False, True):
        backend = OrtBackend({graph: read.graph_path(graph)}, read.config, threads=1, frugal=frugal)
        inputs, outputs = arrays(bundle, graph, {"N": 3, "M": 2, "F": 3, "B": 2, "S": 3 * 5, "T": 5, "K": 4, "C": 5})
        backend.bind(graph, inputs, outputs)()
        results.append(outputs)
    for name, expected in results[0].items():
        assert np.abs(expected).max() > 0.01, name
        scale = max(1.0, np.abs(expected).max())
        assert np.abs(results[1][name] - expected).max() <= 1e-5 * scale, name


def test_buffers_of_the_wrong_type_are_refused_before_they_are_bound(bundle: Path) -> None:
    read = read_bundle(bundle)
    backend = OrtBackend({name: read.graph_path(name) for name in GRAPHS}, read.config)
    side = read.config.vision.image_size
    features = np.empty(graph_specs(read.config)["vision_encoder"].output("features").resolve({"N": 1}), np.float32)
    for pixels in (np.zeros((1, 3, side, side)), np.zeros((1, 3, side, 2 * side), np.float32)[..., ::2]):
        with pytest.raises(ValueError, match="pixel_values"):
            backend.bind("vision_encoder", {"pixel_values": pixels}, {"features": features})


# Kills


def test_a_kill_during_export_leaves_the_old_bundle(
    bundle: Path, checkpoint: Path, stored: StoredModel, tmp_path: Path, copied_graphs
) -> None:
    out = shutil.copytree(bundle, tmp_path / "out")
    # Stops for good in the middle: a graph is half written, the manifest is not.
    code = textwrap.dedent(f"""
        import time
        from pathlib import Path
        import flamingo_rt.export.pipeline as pipeline
        from flamingo_rt.checkpoints import open_checkpoint
        def halt(stored, folder, *_):
            (folder / "half.onnx").write_bytes(b"x")
            print("reached", flush=True)
            time.sleep(600)
        pipeline._write_graphs = halt
        pipeline.compute_reference = lambda *_, **__: None
        pipeline.export_model(open_checkpoint(Path({str(checkpoint)!r})), Path({str(out)!r}), overwrite=True)
    """)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "reached"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(list(tmp_path.rglob("half.onnx"))) == 1
    read_bundle(out)  # verifies every hash
    copied_graphs(lambda folder: None)
    export_model(stored, out, overwrite=True)  # leftovers of the killed run do not stand in the way
    read_bundle(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
