"""Opening a model: the backend that fits the folder, and a remedy for everything that does not fit."""

import subprocess
import sys

import pytest

import flamingo_rt
from flamingo_rt.bundle import read_bundle, write_manifest
from flamingo_rt.errors import DataError, UsageError


@pytest.mark.parametrize("backend", ["auto", "ort"])
def test_a_bundle_runs_on_onnx_runtime(backend, bundle_folder, torch_model, pictures):
    model = flamingo_rt.load(bundle_folder, backend, threads=1)
    assert model.backend.name == "ort"
    parts = [pictures[0], "Output:"]
    expected = torch_model.generate(parts, max_new_tokens=3).result().tokens
    assert model.generate(parts, max_new_tokens=3).result().tokens == expected


def test_threads_that_do_not_spin_compute_the_same(bundle_folder, pictures):
    parts = [pictures[0], "Output:"]
    answers = [
        flamingo_rt.load(bundle_folder, spin=spin).generate(parts, max_new_tokens=6).result() for spin in (True, False)
    ]
    assert answers[0].tokens == answers[1].tokens
    assert answers[0].logprobs == answers[1].logprobs


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_checkpoint_runs_in_pytorch(backend, checkpoint_folder, torch_model, pictures):
    model = flamingo_rt.load(str(checkpoint_folder), backend)
    assert model.backend.name == "torch"
    parts = [pictures[0], "Output:"]
    assert model.generate(parts, max_new_tokens=3).result().tokens == (
        torch_model.generate(parts, max_new_tokens=3).result().tokens
    )


def test_an_unknown_backend_is_answered_with_the_known_ones(bundle_folder):
    known = "auto, ort, ort-cuda, ort-tensorrt-rtx, tensorrt, torch"
    with pytest.raises(UsageError, match=f"unknown backend 'tpu'; known: {known}"):
        flamingo_rt.load(bundle_folder, "tpu")


def test_torch_on_a_bundle_asks_for_the_checkpoint(bundle_folder):
    with pytest.raises(UsageError, match=r"is a bundle .* give the checkpoint .* or take --backend ort"):
        flamingo_rt.load(bundle_folder, "torch")


def test_ort_on_a_checkpoint_shows_the_export_command(checkpoint_folder):
    with pytest.raises(UsageError, match=f"flamingo-rt export --ckpt {checkpoint_folder} --out"):
        flamingo_rt.load(checkpoint_folder, "ort")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no model at .*nowhere"):
        flamingo_rt.load(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_folder_that_is_neither_bundle_nor_checkpoint_is_refused(kind, tmp_path):
    path = tmp_path
    if kind == "file":
        path = tmp_path / "model.onnx"
        path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"neither a bundle .no manifest.json. nor a checkpoint .no config.json."):
        flamingo_rt.load(path)


def test_a_graph_that_is_no_graph_is_named(bundle_folder, tmp_path):
    bundle = read_bundle(bundle_folder)
    for file in bundle_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "resampler.onnx").write_bytes(b"not a graph")
    write_manifest(tmp_path, bundle)
    with pytest.raises(DataError, match=r"cannot load .*resampler.onnx"):
        flamingo_rt.load(tmp_path)


# Logging. In a process of its own: pytest sets up logging in this one.

LOADING = """
import logging, sys
import flamingo_rt
from flamingo_rt import loading
from flamingo_rt.engines import ort_gpu
from flamingo_rt.errors import DependencyError

def no_gpu(bundle, backend, workload):
    raise DependencyError("no GPU is found")

ort_gpu.has_cuda_kernels = lambda: PASSED_OVER
loading._ort_gpu_backend = no_gpu
"""


def stderr_of_loading(bundle_folder, setup: str, passed_over: bool) -> str:
    code = LOADING.replace("PASSED_OVER", str(passed_over)) + f"{setup}\nflamingo_rt.load({str(bundle_folder)!r})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr


def test_a_library_user_who_sets_up_no_logging_sees_nothing(bundle_folder):
    assert stderr_of_loading(bundle_folder, "", passed_over=True) == ""


@pytest.mark.parametrize(("passed_over", "level", "said"), [
    (False, "INFO", "ONNX Runtime runs it on the CPU"),
    (True, "WARNING", "ONNX Runtime runs it on the CPU; not on the GPU: no GPU is found"),
])
def test_the_log_says_which_backend_and_why_not_a_faster_one(bundle_folder, passed_over, level, said):
    written = stderr_of_loading(bundle_folder, "logging.basicConfig(level=logging.INFO)", passed_over)
    assert written == f"{level}:flamingo_rt.loading:{bundle_folder}: {said}\n"


def test_the_command_line_shows_warnings_and_nothing_less(bundle_folder):
    run = f"sys.argv = ['flamingo-rt', 'infer', '--prompt', 'a', '--max-new-tokens', '1', '--model', " \
          f"{str(bundle_folder)!r}]\nfrom flamingo_rt.cli import main\nmain()\nsys.exit()"
    written = stderr_of_loading(bundle_folder, run, passed_over=True)
    assert written == f"{bundle_folder}: ONNX Runtime runs it on the CPU; not on the GPU: no GPU is found\n"
    assert stderr_of_loading(bundle_folder, run, passed_over=False) == ""
