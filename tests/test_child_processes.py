"""Processes that this project starts import nothing from the folder they are started in."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_steps.gpu_plan import PEER_SCRIPT
from benchmarks.processes import run
from flamingo_rt import child_process
from flamingo_rt.bench.bandwidth import BandwidthProbe
from flamingo_rt.child_process import child_environment, python_command
from flamingo_rt.errors import DataError

ROOT = Path(__file__).parent.parent
# Modules of ours, of our dependencies, and of the standard library: what is imported at the start of a process, by
# runpy, for -c (Python 3.13: linecache), and by the commands.
HOSTILE = (
    "click", "concurrent", "flamingo_rt", "importlib", "json", "linecache", "matplotlib", "numpy", "onnxruntime",
    "open_flamingo", "platform", "processes", "rich", "runpy", "sitecustomize", "statistics", "tokenizers", "torch",
    "typing",
)
QUICK_BENCH = (
    "bench", "--runs", "1", "--warmup", "0", "--shots", "0", "--batch", "1", "--context", "16", "--tokens", "1",
    "--threads", "1", "--json",
)


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: one whose modules leave a file when they are imported."""
    folder = tmp_path / "downloads"
    for name in HOSTILE:
        package = folder / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(
            f"open({str(folder / 'imported')!r}, 'a').write({name!r} + '\\n')\n"
            f"raise ImportError('{name} of the working folder')\n"
        )
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return folder


def imported(folder: Path) -> list[str]:
    file = folder / "imported"
    return file.read_text().split() if file.exists() else []


def test_the_folder_is_hostile(hostile: Path) -> None:
    assert subprocess.run([sys.executable, "-c", "import json, numpy"], capture_output=True).returncode
    assert imported(hostile)[0] == ("linecache" if sys.version_info >= (3, 13) else "json")


@pytest.mark.parametrize("pythonpath", [None, "", os.pathsep, ".", "./", "{here}", "{here}/../downloads"])
def test_memory_is_read_by_a_process_that_imports_nothing_from_here(
    hostile: Path, monkeypatch: pytest.MonkeyPatch, pythonpath: str | None
) -> None:
    if pythonpath is not None:
        monkeypatch.setenv("PYTHONPATH", pythonpath.format(here=hostile))
    with BandwidthProbe(1, buffer_bytes=1 << 20) as probe:
        rate, _ = probe.read()
    assert rate > 0
    assert imported(hostile) == []


def test_bench_imports_nothing_from_here(hostile: Path) -> None:
    command = Path(sys.executable).with_name("flamingo-rt")
    if not command.is_file():
        pytest.skip("there is no flamingo-rt beside this Python")
    done = subprocess.run([command, *QUICK_BENCH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert imported(hostile) == []


def test_the_benchmark_of_starting_imports_nothing_from_here(hostile: Path) -> None:
    environment = child_environment({"PYTHONPATH": str(ROOT)})
    command = python_command("benchmarks.startup", "--runs", "1")
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert imported(hostile) == []


def test_looking_for_the_peer_imports_nothing_from_here(hostile: Path) -> None:
    finished = run([sys.executable, str(PEER_SCRIPT), "--check"])
    assert finished.status == 0
    assert "working folder" not in finished.output
    assert imported(hostile) == []


def test_a_benchmark_s_process_imports_nothing_from_here(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep)
    finished = run(python_command("flamingo_rt", "infer", "--image", str(ROOT / "examples" / "scene.png")))
    assert (finished.status, finished.output) == (0, "a blue triangle, a dotted purple circle and a blue cross")
    assert imported(hostile) == []


@pytest.mark.parametrize("version", [(3, 10), sys.version_info[:2]], ids=["3.10", "this"])
def test_a_module_runs_as_with_python_m_without_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]
) -> None:
    """Check the way of Python 3.10 too, which has no option for it."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        folder.mkdir()
    (elsewhere / "shown.py").write_text("import json, sys; print(json.dumps([__name__, sys.argv, sys.path]))")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(here), "../elsewhere", "not/there"]))
    monkeypatch.setattr(child_process.sys, "version_info", version)
    command = python_command("shown", "an argument", "")
    assert ("-P" in command) == (version >= (3, 11))
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True)
    name, arguments, path = json.loads(done.stdout)
    assert (name, arguments) == ("__main__", [str(elsewhere / "shown.py"), "an argument", ""])
    assert path[:2] == [str(elsewhere), str(here / "not" / "there")]
    assert not {"", ".", str(here)} & set(path)


def test_other_variables_stay_and_added_ones_come_in_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("PYTHONUTF8", "1")
    found = child_environment({"OMP_NUM_THREADS": "1"})
    assert (found["OMP_NUM_THREADS"], found["PYTHONUTF8"], found.get("PYTHONPATH")) == ("1", "1", None)
    assert child_environment({"PYTHONPATH": "given"})["PYTHONPATH"] == "given"


def test_a_working_folder_that_is_gone_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "a", str(tmp_path)]))
    assert child_environment()["PYTHONPATH"].endswith(str(tmp_path))


def test_python_m_of_this_package_goes_on_without_the_working_folder(hostile: Path) -> None:
    """Python itself starts the process: its own imports and the package's first ones still look in this folder."""
    for name in HOSTILE:
        if name not in ("click", "numpy", "tokenizers", "onnxruntime", "rich"):
            shutil.rmtree(hostile / name)
    command = [sys.executable, "-m", "flamingo_rt", "infer", "--image", str(ROOT / "examples" / "scene.png")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert imported(hostile) == []


def test_python_m_of_this_package_needs_no_working_folder(tmp_path: Path) -> None:
    gone = f"mkdir gone && cd gone && rmdir ../gone && exec '{sys.executable}' -m flamingo_rt --version"
    done = subprocess.run(["sh", "-c", gone], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("flamingo-rt")


def test_an_interpreter_that_is_not_known_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", None)
    with pytest.raises(DataError, match=r"cannot be started: .*which Python interpreter"), BandwidthProbe(1):
        pass


STARTED_HERE = {
    "flamingo_rt/bench/bandwidth.py", "benchmarks/processes.py", "benchmarks/startup.py", "benchmarks/engine_memory.py",
    "benchmarks/training_kills.py", "benchmarks/gguf_fixtures/write_gguf.py", "recipes/photos/fetch.py",
}


def test_no_process_is_started_in_another_way() -> None:
    """Check in the source that every call of `subprocess` has the environment made here, and no command ``-m``."""
    starting = set()
    for folder in ("flamingo_rt", "export", "engines", "benchmarks", "recipes"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            if name == "flamingo_rt/child_process.py" or ".venv" in name:
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant):
                    assert node.value not in ("-m", "-c"), name
                if isinstance(node, ast.Import):
                    assert "multiprocessing" not in {alias.name.split(".")[0] for alias in node.names}, name
                if isinstance(node, ast.ImportFrom):
                    assert (node.module or "").split(".")[0] not in ("multiprocessing", "subprocess"), name
                if not isinstance(node, ast.Call):
                    continue
                called = ast.unparse(node.func)
                assert not re.match(r"os\.(system|popen|exec|spawn|posix_spawn|fork)", called), name
                if called in ("subprocess.run", "subprocess.Popen", "subprocess.check_output", "subprocess.call"):
                    starting.add(name)
                    given = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "env"]
                    assert given, name
                    assert given[0].startswith("child_environment("), name
    assert starting == STARTED_HERE
