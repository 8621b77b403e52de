"""Every combination of extras that a page, a script or a message names can be installed: pip finds versions of all that
it asks for that go together, on a workstation and on a Jetson. Without a package registry these tests are skipped."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
from pathlib import Path

import pytest
from packaging.version import Version
from test_requirements import EXTRAS, SAME_MODULE

from benchmarks.gpu_steps.pip_calls import pip_options
from flamingo_rt.child_process import child_environment, python_command

ROOT = Path(__file__).parent.parent
NAMED_IN = ("*.md", "Makefile", "docs/*.md", "examples/*.py", "examples/*.ipynb", "benchmarks/*.py",
            "flamingo_rt/**/*.py", "engines/**/*.py", "export/**/*.py")
NAMED = re.compile(r"""(?:flamingo-rt|['"`]\.)\[([a-z][a-z,-]*)\]""")
SOURCES = {"pycuda", "tensorrt", "tensorrt-rtx-cu13"}  # distributions without wheels
PLACEHOLDER = "special placeholder package"  # what TensorRT's says where its own index does not answer
OLDEST_PIP = Version("24.0")  # older ones fetch every wheel, gigabytes of them, to see what it asks for


def extras_in(text: str) -> set[str]:
    """Combinations of extras in a text, each as ``a,b`` in the order of the alphabet."""
    return {",".join(sorted(found.split(","))) for found in NAMED.findall(text)}


def named() -> set[str]:
    files = [file for pattern in NAMED_IN for file in ROOT.glob(pattern)]
    return {extras for file in files for extras in extras_in(file.read_text(encoding="utf-8"))}


def on_jetson() -> set[str]:
    lines = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8").splitlines()
    return {extras for line in lines if line.startswith("jetson$") for extras in extras_in(line)}


def names_of(extras: str) -> set[str]:
    """Distributions that extras ask for, whatever Python runs."""
    return {requirement.name.lower() for extra in ["", *extras.split(",")] for requirement in EXTRAS[extra]}


def test_the_pages_and_messages_name_combinations() -> None:
    assert {"cpu", "cpu,export", "cpu,export,train", "cuda,gpu", "tensorrt-rtx"} <= named()
    assert on_jetson()


@pytest.mark.parametrize("extras", sorted(named()))
def test_a_combination_is_of_extras_that_there_are_and_brings_one_onnxruntime(extras: str) -> None:
    assert set(extras.split(",")) <= set(EXTRAS)
    assert len({"cpu", "gpu", "gpu-rtx"} & set(extras.split(","))) <= 1


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This project's wheel. Skips where there is no registry, or where pip is too old to ask it."""
    version = importlib.metadata.version("pip")
    if Version(version) < OLDEST_PIP:
        pytest.skip(f"pip {version} fetches all wheels to see what they ask for: python -m pip install --upgrade pip")
    folder = tmp_path_factory.mktemp("wheel")
    asked = pip("download", "--no-deps", "--retries", "0", "--dest", str(folder), "tomli-w")
    if asked.returncode:
        pytest.skip(f"no package registry answers: {asked.stderr.strip().splitlines()[-1:]}")
    built = pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    assert built.returncode == 0, built.stderr
    return next(folder.glob("flamingo_rt-*.whl"))


def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = python_command("pip", *arguments)
    return subprocess.run(command, capture_output=True, text=True, env=child_environment())


def target(python: str, machine: str, folder: Path, **more: int) -> tuple[str, ...]:
    """Options for another machine; pip wants to know a folder that it would install to."""
    return (*pip_options(python, machine, **more), "--target", str(folder / "there"))


def resolved(wheel: Path, extras: str, folder: Path, options: tuple[str, ...]) -> dict[str, str]:
    """Versions by normalized name that pip would install."""
    report = folder / "report.json"
    done = pip("install", "--quiet", "--dry-run", "--ignore-installed", "--use-feature=fast-deps", "--report",
               str(report), *options, f"{wheel}[{extras}]")
    if PLACEHOLDER in done.stderr:
        pytest.skip("NVIDIA's own index does not answer: the package index has no wheels of TensorRT's libraries")
    assert done.returncode == 0, done.stderr
    installed = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {re.sub(r"[-_.]+", "-", each["metadata"]["name"]).lower(): each["metadata"]["version"] for each in installed}


@pytest.mark.slow
@pytest.mark.parametrize("extras", sorted(named()))
def test_a_named_combination_resolves_on_a_workstation(extras: str, wheel: Path, tmp_path: Path) -> None:
    """For Linux on x86-64 and Python 3.12; with distributions that come as source alone, for the Python that runs."""
    options = () if names_of(extras) & SOURCES else target("3.12", "x86_64", tmp_path)
    found = resolved(wheel, extras, tmp_path, options)
    assert len(SAME_MODULE & set(found)) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.10", "3.12"])  # JetPack 6 and 7
@pytest.mark.parametrize("extras", sorted(on_jetson()))
def test_a_jetson_s_combination_resolves(extras: str, python: str, wheel: Path, tmp_path: Path) -> None:
    if "pycuda" in names_of(extras):
        pytest.skip("PyCUDA is compiled where it is installed")
    found = resolved(wheel, extras, tmp_path, target(python, "aarch64", tmp_path, glibc=35))
    assert not SAME_MODULE & set(found), "GPUs there take engines, and PyTorch is not needed"
    assert "torch" not in found
