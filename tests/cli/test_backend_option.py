"""``--device``, ``--compute`` and ``--cuda-graphs`` of every command that runs a model, and ``verify --ckpt``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recorded_device import RecordedDevice

from flamingo_rt.engines.gpu.nvidia_driver import Gpu
from flamingo_rt.errors import DataError

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["infer", "bench", "prompt compile", "evaluate scenes", "evaluate task", "verify"])
def command(request, bundle: Path, checkpoint: Path, pictures, tmp_path: Path) -> tuple:
    task = ROOT / "examples" / "tasks" / "words.toml"
    own = {
        "infer": ("--image", pictures[0]), "bench": (), "evaluate scenes": (), "verify": ("--ckpt", checkpoint),
        "prompt compile": ("--shot", pictures[0], "a", "--out", tmp_path / "x.prompt"),
        "evaluate task": (task, "--out", tmp_path / "out", "--shots", "0"),
    }
    return (*request.param.split(), "--model", bundle, *own[request.param])


@pytest.fixture
def device(monkeypatch) -> RecordedDevice:
    """The GPU that ``--device cuda`` finds: a stand-in."""
    made = RecordedDevice()
    monkeypatch.setattr("flamingo_rt.model.device_backend.open_device", lambda name, cuda_graphs: made)
    return made


@pytest.mark.parametrize(("options", "expected"), [
    ((), (None, None, True)),
    (("--device", "cuda", "--compute", "fp16", "--no-cuda-graphs"), ("cuda", "fp16", False)),
])
def test_every_command_that_runs_a_model_passes_them_on(run, command, monkeypatch, options, expected) -> None:
    asked: list[dict] = []

    def load(*arguments, **given):
        asked.append(given)
        raise DataError("far enough")

    monkeypatch.setattr("flamingo_rt.loading.load", load)
    outcome = run(*command, "--backend", "torch", *options)
    assert (outcome.code, outcome.err.splitlines()[-1]) == (1, "flamingo-rt: far enough")
    assert [(each["device"], each["compute"], each["cuda_graphs"]) for each in asked] == [expected]


def test_an_answer_on_a_gpu_names_the_device(run, checkpoint, pictures, device) -> None:
    options = ("--model", checkpoint, "--image", pictures[0], "--json", "--max-new-tokens", 6)
    on_cpu = json.loads(run("infer", *options, "--speculation", 0).out)
    on_gpu = json.loads(run("infer", *options, "--device", "cuda", "--compute", "fp32").out)
    assert (on_cpu["backend"], on_gpu["backend"]) == ("torch", "torch-cpu")  # the stand-in is the CPU
    assert on_gpu["tokens"] == on_cpu["tokens"]


def test_a_checkpoint_on_a_gpu_is_measured_against_that_gpu(run, checkpoint, device, monkeypatch) -> None:
    monkeypatch.setattr("flamingo_rt.model.torch_probe.COPY_BYTES", 1 << 16)
    monkeypatch.setattr("flamingo_rt.model.torch_probe.SIZE", 32)
    outcome = run("bench", "--model", checkpoint, "--device", "cuda", "--compute", "bf16", "--shots", "0", "--batch", 1,
                  "--context", 5, "--tokens", 2, "--runs", 1, "--json")
    found = json.loads(outcome.out)
    assert found["model"]["dtype"]["language_model"] == "bfloat16"
    assert "a stand-in" in found["rates"]["bandwidth_by"]
    assert "bfloat16" in found["rates"]["flops_by"]


@pytest.mark.parametrize(("arguments", "said"), [
    (("infer", "--prompt", "a", "--backend", "ort", "--device", "cuda"), "device cuda is for the torch backend"),
    (("infer", "--prompt", "a", "--device", "cuda"), "device cuda is for the torch backend and checkpoints, and"),
    (("bench", "--preset", "tiny", "--device", "cuda"), "--preset makes a bundle: leave it out"),
    (("infer", "--prompt", "a", "--compute", "int8"), "'int8' is not one of 'fp32', 'fp16', 'bf16'"),
])
def test_a_device_that_does_not_fit_ends_with_2(run, arguments, said) -> None:
    outcome = run(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in " ".join(outcome.err.split())


def test_a_gpu_that_cannot_be_used_ends_with_1_and_says_why(run, checkpoint, monkeypatch) -> None:
    monkeypatch.setattr("torch.version.cuda", None)
    outcome = run("infer", "--model", checkpoint, "--prompt", "a", "--device", "cuda")
    assert (outcome.code, outcome.out) == (1, "")
    assert "has no CUDA: install a CUDA build of PyTorch" in outcome.err


# verify


@pytest.mark.parametrize("options", [(), ("--device", "cuda")], ids=["CPU", "GPU"])
def test_the_checkpoint_of_a_bundle_is_verified_on_any_device(run, bundle, checkpoint, device, options) -> None:
    outcome = run("verify", "--model", bundle, "--backend", "torch", "--ckpt", checkpoint, *options)
    assert (outcome.code, outcome.out.splitlines()[-1]) == (0, "verified")
    assert bool(device.replays) is bool(options)


@pytest.mark.parametrize(("arguments", "said", "code"), [
    (("--ckpt", "CHECKPOINT"), "--ckpt goes with --backend torch", 2),
    (("--ckpt", "OTHER", "--backend", "torch"), "is of another configuration than", 1),
    (("--backend", "torch"), "is a bundle and the torch backend runs a checkpoint", 2),
])
def test_a_checkpoint_that_is_not_the_bundles_is_refused(run, bundle, checkpoint, arguments, said, code) -> None:
    places = {"CHECKPOINT": checkpoint, "OTHER": ROOT / "models" / "tiny"}
    outcome = run("verify", "--model", bundle, *(places.get(each, each) for each in arguments))
    assert (outcome.code, outcome.out) == (code, "")
    assert said in " ".join(outcome.err.split())


# doctor


def test_doctor_multiplies_on_the_gpu_or_says_why_not(run, bundle, monkeypatch) -> None:
    monkeypatch.setattr("flamingo_rt.loading.PACKAGED_BUNDLE", bundle)
    monkeypatch.setattr("flamingo_rt.engines.gpu.nvidia_driver.find_gpu", lambda: Gpu("Fake", "9.0", 1, False))
    monkeypatch.setattr("torch.version.cuda", None)
    state = json.loads(run("doctor", "--json").out)["backends"]["torch"]
    assert state["works"] is True
    assert ", CPU (device cuda: the installed PyTorch" in state["detail"]
    monkeypatch.setattr("flamingo_rt.model.torch_device.open_device", lambda name: RecordedDevice())
    state = json.loads(run("doctor", "--json").out)["backends"]["torch"]
    assert ", CPU, a stand-in with --device cuda, safetensors" in state["detail"]
