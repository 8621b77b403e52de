"""A working folder that was removed: commands with whole paths work, relative ones are refused with the reason."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PICTURE = Path(__file__).parents[2] / "examples" / "scene.png"


def run_in_a_gone_folder(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    gone = shlex.quote(str(folder))
    command = shlex.join([sys.executable, "-m", "flamingo_rt", *map(str, arguments)])
    script = f"cd {gone} && rmdir {gone} && exec {command}"
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], "Usage"),
        (["infer", "--image", PICTURE], "a blue triangle"),
        (["describe", "--preset", "tiny", "--json"], '"total"'),  # imports PyTorch, whose libraries would end it
    ],
    ids=["help", "infer", "describe"],
)
def test_a_command_with_whole_paths_works(tmp_path, arguments, said) -> None:
    done = run_in_a_gone_folder(tmp_path / "gone", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout


def test_a_relative_path_is_refused_with_the_reason(tmp_path) -> None:
    done = run_in_a_gone_folder(tmp_path / "gone", "infer", "--image", "scene.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'scene.png' is a relative path, and the current folder was removed" in done.stderr
