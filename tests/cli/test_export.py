"""`flamingo-rt export`: the bundle answers, and a checkpoint that cannot be used is refused by name."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flamingo_rt.contract import GRAPHS


def stages(err: str) -> list[str]:
    """Names of the stages in the lines of progress, in order."""
    return re.findall(r"^ *\d+\.\d s  (.+)$", err, re.MULTILINE)


def missing(tensors):
    del tensors["resampler.latents"]


def misshapen(tensors):
    tensors["resampler.latents"] = tensors["resampler.latents"][1:].clone()


def unknown(tensors):
    tensors["resampler.nonsense"] = torch.zeros(1)


@pytest.fixture(params=[missing, misshapen, unknown], ids=lambda change: change.__name__)
def damaged(request, checkpoint, tmp_path):
    """A checkpoint with one tensor changed, and the name its error must hold."""
    folder = shutil.copytree(checkpoint, tmp_path / "damaged")
    tensors = load_file(folder / "model.safetensors")
    request.param(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder, "resampler.nonsense" if request.param is unknown else "resampler.latents"


def test_an_exported_bundle_answers(run, checkpoint, bundle, tmp_path, monkeypatch) -> None:
    def copied(stored, folder, lowering, weights, change, progress):  # tracing takes seconds; the same as `bundle`
        for name in GRAPHS:
            with progress(name, 1):
                for file in (f"{name}.onnx", f"{name}.onnx.data"):
                    shutil.copy(bundle / file, folder)
        return {name: folder / f"{name}.onnx" for name in GRAPHS}

    monkeypatch.setattr("flamingo_rt.export.pipeline._write_graphs", copied)
    out = tmp_path / "new" / "bundle"
    outcome = run("export", "--ckpt", checkpoint, "--out", out, "--tolerance", "1e-2", "--json")
    assert outcome.code == 0
    report = json.loads(outcome.out)
    assert set(report) == {
        "bundle", "bytes", "lowering", "compute", "dtype", "deviation", "quantization", "rounding",
        "validation", "license", "source",
    }
    assert report["quantization"] is report["rounding"] is None
    assert (report["bundle"], report["lowering"], report["dtype"]) == (str(out), "ort", "fp32")
    assert report["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    assert set(report["deviation"]) == set(GRAPHS)
    assert stages(outcome.err) == ["PyTorch's answers", *GRAPHS, "comparison", "reference outputs", "checksums"]
    assert run("infer", "--model", out, "--prompt", "a", "--max-new-tokens", 2).code == 0


def test_an_export_in_bf16_is_half_as_large_and_answers(run, checkpoint, bundle, tmp_path) -> None:
    out = tmp_path / "bundle"
    outcome = run("export", "--ckpt", checkpoint, "--out", out, "--tolerance", "1e-2", "--dtype", "bf16")
    assert outcome.code == 0
    graphs = [f"{name} {part}" for name in GRAPHS for part in ("graph", "weights")]
    assert stages(outcome.err) == ["PyTorch's answers", *graphs, "comparison", "reference outputs", "checksums"]
    assert outcome.out.startswith(f"wrote {out} (")
    manifest = json.loads((out / "manifest.json").read_text())
    assert {entry["dtype"] for entry in manifest["graphs"].values()} == {"bfloat16"}
    size, whole = (sum((folder / f"{name}.onnx.data").stat().st_size for name in GRAPHS) for folder in (out, bundle))
    assert 0.49 < size / whole < 0.52
    assert run("infer", "--model", out, "--prompt", "a", "--max-new-tokens", 2).code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vision", "clip.pt"], "an OpenFlamingo model has three sources: give --ckpt, --vision and --language"),
        (["--language", "mpt"], "an OpenFlamingo model has three sources: give --ckpt, --vision and --language"),
        (["--preset", "openflamingo-3b"], "--preset goes with --vision and --language"),
        (["--tokenizer", "mpt"], "--tokenizer goes with --vision and --language"),
        (["--vision-activation", "gelu"], "--vision-activation goes with --vision and --language"),
        (["--vision-post-norm"], "--vision-post-norm goes with --vision and --language"),
        (["--compute", "fp16", "--dtype", "fp32"], "graphs that compute in fp16 hold their weights in fp16"),
        (["--compute", "bf16", "--quantize", "int8"], "bf16 and quantization int8 exclude each other"),
        (["--dtype", "int3"], "'int3' is not one of 'fp32', 'fp16', 'bf16'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run, checkpoint, tmp_path, arguments, message) -> None:
    outcome = run("export", "--ckpt", checkpoint, "--out", tmp_path / "out", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command", [["export", "--out", "out", "--ckpt"], ["infer", "--prompt", "a", "--backend", "torch", "--model"]],
    ids=["export", "infer"],
)
def test_a_checkpoint_with_another_tensor_than_its_configuration_is_refused(
    run, damaged, command, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, tensor = damaged
    outcome = run(*command, folder)
    assert outcome.code == 1
    assert tensor in outcome.err
    assert str(folder / "model.safetensors") in outcome.err
    assert outcome.out == ""
    assert not (tmp_path / "out").exists()


def test_a_graph_beyond_the_tolerance_is_named_and_nothing_is_written(run, checkpoint, tmp_path, monkeypatch) -> None:
    from flamingo_rt.errors import ParityError

    def deviate(*arguments, **options):
        raise ParityError("graph resampler, tensor media_key.0 deviates")

    monkeypatch.setattr("flamingo_rt.export.pipeline._write_graphs", lambda *arguments: dict.fromkeys(GRAPHS))
    monkeypatch.setattr("flamingo_rt.export.pipeline.OrtBackend", lambda *arguments, **options: None)
    monkeypatch.setattr("flamingo_rt.export.pipeline.run_cases", deviate)
    outcome = run("export", "--ckpt", checkpoint, "--out", tmp_path / "out")
    assert outcome.code == 1
    assert "graph resampler" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_kept(run, checkpoint, tmp_path) -> None:
    (tmp_path / "precious").write_text("kept")
    outcome = run("export", "--ckpt", checkpoint, "--out", tmp_path)
    assert outcome.code == 2
    assert str(tmp_path) in outcome.err
    assert "--overwrite" in outcome.err
    assert [file.read_text() for file in tmp_path.iterdir()] == ["kept"]


def test_a_file_is_never_replaced_by_a_bundle(run, checkpoint, tmp_path) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    outcome = run("export", "--ckpt", checkpoint, "--out", file, "--overwrite")
    assert (outcome.code, file.read_text()) == (2, "kept")
    assert str(file) in outcome.err


@pytest.mark.parametrize("command", [["export", "--ckpt", "unread"], ["train", "flamingo", "--data", "scenes"]],
                         ids=["export", "train"])
def test_a_place_where_no_folder_can_be_is_refused_before_any_work(run, command, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("flamingo_rt.training.flamingo_start.open_flamingo_stage", None)
    (tmp_path / "file").write_text("kept")
    out = tmp_path / "file" / "below" / "out"
    outcome = run(*command, "--out", out)
    assert outcome.code == 1
    assert str(out) in outcome.err
    assert str(tmp_path / "file") in outcome.err
    assert (tmp_path / "file").read_text() == "kept"


def test_a_checkpoint_that_is_not_there_is_named(run, tmp_path) -> None:
    outcome = run("export", "--ckpt", tmp_path / "absent", "--out", tmp_path / "out")
    assert outcome.code == 1
    assert str(tmp_path / "absent") in outcome.err


def test_a_checkpoint_file_without_its_other_sources_says_which(run, tmp_path) -> None:
    torch.save({"perceiver.latents": torch.zeros(2, 2)}, tmp_path / "checkpoint.pt")
    outcome = run("export", "--ckpt", tmp_path / "checkpoint.pt", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert f"{tmp_path / 'checkpoint.pt'} is a file" in outcome.err
    assert "--vision" in outcome.err
    assert "--language" in outcome.err
    assert not (tmp_path / "out").exists()


def test_an_unknown_lowering_lists_the_known_ones(run, checkpoint, tmp_path) -> None:
    outcome = run("export", "--ckpt", checkpoint, "--out", tmp_path / "out", "--lowering", "nonsense")
    assert outcome.code == 2
    assert "'nonsense'" in outcome.err
    assert "known: ort" in outcome.err


SIGNALS = ["SIGTERM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGHUP", "SIGINT"))]


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_during_export_leaves_nothing_half_written(name: str, checkpoint: Path, tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import sys, time
        import flamingo_rt.export.pipeline as pipeline
        from flamingo_rt.cli import main
        def halt(stored, folder, *_):
            (folder / "half.onnx").write_bytes(b"x")
            print("reached", flush=True)
            time.sleep(600)
        pipeline._write_graphs = halt
        pipeline.compute_reference = lambda *_, **__: None
        main()
    """)
    command = [sys.executable, "-c", code, "export", "--ckpt", str(checkpoint), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A process that a shell starts in the background ignores it, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "reached"
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == f"interrupted: {tmp_path / 'out'} was not written"
    assert not list(tmp_path.iterdir())


def test_a_validation_file_that_is_not_there_is_refused_before_any_work(run, checkpoint, tmp_path) -> None:
    outcome = run("export", "--ckpt", checkpoint, "--out", tmp_path / "out", "--validation", tmp_path / "absent.jsonl")
    assert (outcome.code, len(outcome.err.splitlines())) == (1, 1)
    assert f"cannot read prompts from {tmp_path / 'absent.jsonl'}" in outcome.err
