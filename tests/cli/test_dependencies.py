"""Without an extra, the commands that need it say which; each in a fresh process where the library is not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flamingo_rt.training.bridge_folder import take_bridge


def without(library: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys\nsys.modules[{library!r}] = None\nsys.argv = {['flamingo-rt', *map(str, arguments)]!r}\n"
        "from flamingo_rt.cli import main\nmain()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("library", "extra", "arguments"),
    [
        ("torch", "export", ["export", "--ckpt", "CHECKPOINT", "--out", "OUT"]),
        ("torch", "train", ["train", "flamingo", "--data", "scenes", "--out", "OUT"]),
        ("torch", "export", ["describe", "--preset", "tiny"]),
        ("torch", "export", ["infer", "--backend", "torch", "--model", "CHECKPOINT", "--prompt", "a"]),
        ("onnxruntime", "cpu", ["infer", "--model", "BUNDLE", "--prompt", "a"]),
        ("safetensors", "export", ["export", "--ckpt", "CHECKPOINT", "--out", "OUT"]),
        ("onnx_ir", "export", ["export", "--ckpt", "CHECKPOINT", "--out", "OUT"]),
        ("sklearn", "train", ["train", "vision", "--data", "scenes", "--out", "OUT"]),
        ("sklearn", "train", ["evaluate", "scenes", "--model", "BUNDLE", "--scenes", "30"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_missing_library_is_named_with_its_extra(library, extra, arguments, checkpoint, bundle, tmp_path) -> None:
    places = {"CHECKPOINT": checkpoint, "BUNDLE": bundle, "OUT": tmp_path / "out"}
    done = without(library, *(places.get(argument, argument) for argument in arguments))
    assert done.returncode == 1
    assert f"flamingo-rt[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_the_library_of_a_gguf_file_is_named_when_a_bridge_is_joined(checkpoint, tmp_path) -> None:
    take_bridge(checkpoint, tmp_path / "bridge")
    language = Path(__file__).parent.parent / "fixtures" / "gguf" / "bytes.gguf"
    done = without("gguf", "bridge", "join", "--bridge", tmp_path / "bridge", "--vision", checkpoint, "--language",
                   language, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "needs gguf" in done.stderr
    assert "flamingo-rt[train]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bundle_answers_without_torch(bundle) -> None:
    done = without("torch", "infer", "--model", bundle, "--prompt", "a", "--max-new-tokens", 2)
    assert (done.returncode, done.stderr) == (0, "")
