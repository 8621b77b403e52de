"""`flamingo-rt build`: engines beside the graphs, or one line that says why not."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_tensorrt import MadeUpTensorRT

from flamingo_rt.bundle import Bundle, read_bundle, write_manifest
from flamingo_rt.checkpoints import open_checkpoint
from flamingo_rt.engines.gpu.nvidia_driver import Gpu
from flamingo_rt.engines.ort import OrtBackend
from flamingo_rt.engines.tensorrt.engine_files import EngineFolder, read_engines
from flamingo_rt.errors import DependencyError
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.runtime.reference_outputs import read_reference

VERSION = "1.7.1.116"
A10 = Gpu("A10", "8.6", 24 << 30, integrated=False)


@pytest.fixture(scope="module")
def graphs(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as a bundle for TensorRT."""
    folder = tmp_path_factory.mktemp("build") / "bundle"
    export_model(open_checkpoint(checkpoint), folder, lowering="tensorrt", compute="fp16", compare=False)
    return folder


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> MadeUpTensorRT:
    """TensorRT-RTX on a machine without a GPU."""
    module = MadeUpTensorRT(VERSION, rtx=True)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    monkeypatch.setattr("flamingo_rt.engines.gpu.nvidia_driver.find_gpu", lambda: None)
    return module


@pytest.fixture
def build(run: Callable, graphs: Path, rtx: MadeUpTensorRT) -> Callable:
    """`flamingo-rt build` for TensorRT-RTX."""
    return lambda *arguments: run("build", "--model", graphs, "--target", "tensorrt-rtx", *arguments)


def test_memory_is_reported_before_compiling_and_the_folder_afterwards(build, graphs: Path) -> None:
    outcome = build("--compute-capability", "86,8.9")
    assert outcome.code == 0
    folder = graphs / "engines" / "tensorrt-rtx-sm86-sm89"
    assert outcome.out.startswith(f"wrote {folder} (")
    assert outcome.out.endswith("for compute capability 8.6, 8.9\n")
    first, *stages = outcome.err.splitlines()
    assert first.startswith(f"TensorRT-RTX {VERSION}: compiling takes about ")
    assert [line.split("s  ")[1] for line in stages[:-1]] == [
        "vision_encoder engine", "resampler engine", "language_model engine", "checksums",
    ]
    assert stages[-1] == "not verified: the bundle has no reference outputs"


def test_the_json_says_what_the_engines_are_for(build, graphs: Path) -> None:
    found = json.loads(build("--compute-capability", "86", "--max-batch", 2, "--capacity", 40, "--json").out)
    assert (found["target"], found["version"], found["device"]) == ("tensorrt-rtx", VERSION, None)
    assert found["capabilities"] == ["8.6"]
    assert found["limits"] == {"batch": 2, "tokens": 40, "visuals": 6, "frames": 4, "capacity": 40}
    folder = graphs / "engines" / "tensorrt-rtx-sm86"
    assert found["engines"] == str(folder)
    assert found["bytes"]["resampler"] == (folder / "resampler.engine").stat().st_size


def test_an_estimate_builds_nothing(build, rtx: MadeUpTensorRT) -> None:
    found = json.loads(build("--compute-capability", "120", "--estimate", "--json").out)
    assert found["memory"]["building"] > 0
    assert found["memory"]["running"] > found["memory"]["cache"] > 0
    assert rtx.calls == []


def test_without_a_gpu_a_compute_capability_must_be_given(build) -> None:
    outcome = build()
    assert outcome.code == 1
    assert "--compute-capability 86" in outcome.err


def test_the_gpu_of_this_machine_is_the_default(build, graphs: Path, monkeypatch) -> None:
    monkeypatch.setattr("flamingo_rt.engines.gpu.nvidia_driver.find_gpu", lambda: A10)
    assert build().out.endswith("for A10\n")


# Verification of what was built


@pytest.fixture
def build_here(
    run: Callable, bundle: Path, rtx: MadeUpTensorRT, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable:
    """`flamingo-rt build` of a bundle with reference outputs on a machine with a GPU. Its engines compute what
    ``backend`` does, or fail as it does."""
    monkeypatch.setattr("flamingo_rt.engines.gpu.nvidia_driver.find_gpu", lambda: A10)
    described = read_bundle(shutil.copytree(bundle, tmp_path / "bundle"))
    graphs = {name: replace(entry, lowering="tensorrt") for name, entry in described.graphs.items()}
    write_manifest(described.path, replace(described, graphs=graphs))

    def build(backend: Callable, *arguments: object) -> object:
        monkeypatch.setattr("flamingo_rt.engines.tensorrt.runner.TensorRtBackend", backend)
        return run("build", "--model", described.path, "--target", "tensorrt-rtx", *arguments)

    return build


def on_the_cpu(bundle: Bundle, engines: EngineFolder, runtime: object) -> OrtBackend:
    """The bundle's own graphs, within the limits of the engines."""
    backend = OrtBackend({name: bundle.graph_path(name) for name in bundle.graphs}, bundle.config, threads=1)
    backend.limits = engines.limits
    return backend


def test_engines_for_the_gpu_at_hand_are_verified(build_here) -> None:
    outcome = build_here(on_the_cpu)
    assert outcome.code == 0
    wrote, *_, verdict = outcome.out.splitlines()
    assert wrote.endswith("for A10")
    assert verdict == "verified"
    found = json.loads(build_here(on_the_cpu, "--json").out)
    assert found["verification"]["passed"] is True


def test_engines_that_compute_something_else_are_written_and_end_with_1(build_here, tmp_path: Path) -> None:
    def wrong(bundle: Bundle, engines: EngineFolder, runtime: object) -> OrtBackend:
        backend = on_the_cpu(bundle, engines, runtime)
        bind = backend.bind

        def bind_wrongly(graph, inputs, outputs, constant=()):
            run = bind(graph, inputs, outputs, constant)
            return lambda: (run(), outputs["features"].__imul__(1.1) if graph == "vision_encoder" else None)

        backend.bind = bind_wrongly
        return backend

    outcome = build_here(wrong)
    assert outcome.code == 1
    assert "beyond the tolerance: features of picture" in outcome.out
    assert outcome.out.splitlines()[-1] == "not verified"
    folder = built(tmp_path / "bundle").path
    advice = outcome.err.splitlines()[-1]
    assert advice.startswith(f"the engines in {folder} do not compute what the exported graphs do")
    assert advice.endswith("remove that folder, or build again with another version than TensorRT-RTX 1.7.1.116")


def test_prompts_longer_than_the_engines_take_are_named_and_the_others_verified(build_here, tmp_path: Path) -> None:
    bundle = read_bundle(tmp_path / "bundle")
    prompts = read_reference(bundle.path / bundle.reference.file, bundle.config).prompts
    lengths = {prompt.name: len(prompt.input_ids) for prompt in prompts}
    most = min(lengths.values())
    longer = [name for name, length in lengths.items() if length > most]
    outcome = build_here(on_the_cpu, "--max-tokens", most)
    assert outcome.code == 0
    assert 0 < len(longer) < len(lengths)
    assert f"beyond the engines' limits, so left out: {', '.join(longer)}" in outcome.out.splitlines()
    assert outcome.out.splitlines()[-1].startswith("verified")
    assert built(bundle.path).limits.tokens == most


def test_engines_too_small_for_every_prompt_are_kept_and_the_prompts_named(build_here, tmp_path: Path) -> None:
    outcome = build_here(on_the_cpu, "--max-tokens", 1)
    assert outcome.code == 0
    last = outcome.err.splitlines()[-1]
    assert last.startswith("not verified: the engines' limits are too small for every reference prompt (text, one pict")
    assert "build them for more" in last
    assert built(tmp_path / "bundle").limits.tokens == 1
    assert json.loads(build_here(on_the_cpu, "--max-tokens", 1, "--json").out)["verification"] is None


def built(bundle: Path) -> EngineFolder:
    """The engines of a bundle, which are refused unless they are whole."""
    return read_engines(read_bundle(bundle), "tensorrt-rtx", VERSION, A10)


def test_engines_that_cannot_run_for_want_of_a_library_are_not_verified(build_here) -> None:
    def missing(*arguments: object) -> OrtBackend:
        raise DependencyError("PyCUDA cannot be imported: pip install 'flamingo-rt[cuda]'")

    outcome = build_here(missing)
    assert outcome.code == 0
    assert "not verified: PyCUDA cannot be imported" in outcome.err
    assert "then run flamingo-rt verify --model" in outcome.err


def test_verification_can_be_left_out(build_here) -> None:
    outcome = build_here(None, "--no-verify")
    assert (outcome.code, len(outcome.out.splitlines())) == (0, 1)
    assert "not verified" not in outcome.err


def test_what_tensorrt_refuses_is_one_line(build, rtx: MadeUpTensorRT) -> None:
    rtx.fails["resampler"] = ["[node_x]: no kernel"]
    outcome = build("--compute-capability", "86")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].endswith("resampler.onnx: [node_x]: no kernel")


@pytest.mark.parametrize(("arguments", "code", "named"), [
    (("--compute-capability", "x"), 2, "not a list of compute capabilities"),
    (("--compute-capability", ""), 2, "not a list of compute capabilities"),
    (("--compute-capability", "90"), 2, "known: 86, 89, 120"),
    (("--compute-capability", "86", "--capacity", "97"), 2, "limit of capacity is 97; it must be from 1 to 96"),
    (("--compute-capability", "86", "--max-batch", "0"), 2, "--max-batch"),
])
def test_what_cannot_be_built_is_named(build, arguments, code: int, named: str) -> None:
    outcome = build(*arguments)
    assert outcome.code == code
    assert named in outcome.err


def test_a_bundle_for_onnx_runtime_names_the_export_that_is_needed(run, bundle: Path, rtx) -> None:
    outcome = run("build", "--model", bundle, "--target", "tensorrt-rtx", "--compute-capability", "86")
    assert outcome.code == 1
    assert "needs tensorrt: flamingo-rt export --ckpt CHECKPOINT --out BUNDLE --lowering tensorrt" in outcome.err


@pytest.mark.parametrize(("target", "extra"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt-rtx")])
def test_a_missing_module_names_the_extra(run, graphs: Path, monkeypatch, target: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, target.replace("-", "_"), None)
    outcome = run("build", "--model", graphs, "--target", target)
    assert outcome.code == 1
    assert f"pip install 'flamingo-rt[{extra}]'" in outcome.err


def test_a_bundle_that_is_not_there_is_named(run, rtx, tmp_path: Path) -> None:
    outcome = run("build", "--model", tmp_path / "none", "--target", "tensorrt-rtx", "--compute-capability", "86")
    assert outcome.code == 1
    assert f"there is no bundle at {tmp_path / 'none'}" in outcome.err
