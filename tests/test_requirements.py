"""Every extra can be installed with every Python that the project names."""

from __future__ import annotations

import configparser
import sys
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from flamingo_rt.engines import ort_gpu
from flamingo_rt.errors import DependencyError

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# The newest release with files for Linux on x86-64 and each of these Pythons, within setup.cfg's bounds, as seen on
# 2026-11-26. A bound that is raised beyond one of them, or a new requirement, is looked up anew.
SEEN = {
    "av": ("17.1.0", "18.1.0", "18.1.0", "18.1.0"),
    "numpy": ("2.2.6", "2.4.6", "2.5.5", "2.5.5"),
    "opencv-python-headless": ("5.0.0.93",) * 4,
    "pillow": ("12.3.0", "13.0.0", "13.0.0", "13.0.0"),
    "tokenizers": ("0.23.3",) * 4,
    "click": ("8.5.1",) * 4,
    "rich": ("15.0.0",) * 4,
    "onnxruntime": ("1.23.2", "1.32.0", "1.32.0", "1.32.0"),
    "onnxruntime-gpu": ("1.23.2", "1.31.1", "1.31.1", "1.31.1"),
    "onnxruntime-ep-nv-tensorrt-rtx-cu13": ("0.5.0",) * 4,
    "torch": ("2.13.0",) * 4,
    "onnx": ("1.23.2",) * 4,
    "onnxscript": ("0.7.2",) * 4,
    "safetensors": ("0.8.0",) * 4,
    "gguf": ("0.19.0",) * 4,
    "scikit-learn": ("1.7.2", "1.9.1", "1.9.1", "1.9.1"),
    "tensorboard": ("2.21.0",) * 4,
    "tomli": ("2.5.0",) * 4,
    "tomli-w": ("1.2.0",) * 4,
    "tensorrt": ("11.4.0.106",) * 4,
    "tensorrt-rtx-cu13": ("1.7.1.116",) * 4,
    "pycuda": ("2026.1",) * 4,
    "cuda-bindings": ("13.4.4", "13.5.0", "13.5.0", "13.5.0"),
    "matplotlib": ("3.10.9", "3.11.2", "3.11.2", "3.11.2"),
    "pytest": ("9.2.0",) * 4,
    "pytest-xdist": ("3.8.0",) * 4,
    "packaging": ("26.4",) * 4,
    "hypothesis": ("6.168.5", "6.170.17", "6.170.17", "6.170.17"),
    "ruff": ("0.17.6",) * 4,
    "mypy": ("1.20.2",) * 4,
}


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text: str) -> list[Requirement]:
    return [Requirement(line) for line in text.strip().splitlines()]


EXTRAS = {"": requirements(setup()["options"]["install_requires"])} | {
    name: requirements(text) for name, text in setup()["options.extras_require"].items()
}
SAME_MODULE = {"onnxruntime", "onnxruntime-gpu"}


def asked_for(extra: str, python: str) -> dict[str, Requirement]:
    """Requirements that pip looks for on Linux, x86-64, by normalized name."""
    environment = default_environment() | {
        "python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux",
        "platform_system": "Linux", "platform_machine": "x86_64",
    }
    wanted = [each for each in EXTRAS[extra] if each.marker is None or each.marker.evaluate(environment)]
    assert len({each.name for each in wanted}) == len(wanted), f"twice in {extra}, Python {python}"
    return {each.name.lower(): each for each in wanted}


def test_the_pythons_are_the_ones_that_the_project_names() -> None:
    assert [python for python in (f"3.{minor}" for minor in range(8, 20))
            if f"{python}.0" in SpecifierSet(setup()["options"]["python_requires"])] == list(PYTHONS)
    classifiers = setup()["metadata"]["classifiers"].split("\n")
    assert [line.split(" :: ")[-1] for line in classifiers if ":: Python :: 3." in line] == list(PYTHONS)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", EXTRAS, ids=lambda extra: extra or "always")
def test_an_extra_asks_for_versions_that_exist_for_the_python(extra: str, python: str) -> None:
    for name, requirement in asked_for(extra, python).items():
        assert requirement.specifier.contains(SEEN[name][PYTHONS.index(python)]), f"{requirement} for Python {python}"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", ["cpu", "gpu", "gpu-rtx", "export"])
def test_an_extra_with_onnxruntime_has_it_once_with_every_python(extra: str, python: str) -> None:
    assert len(SAME_MODULE & set(asked_for(extra, python))) == 1


def test_every_requirement_has_an_upper_bound_but_for_sources() -> None:
    for extra, wanted in EXTRAS.items():
        for requirement in wanted:
            bounded = any(each.operator in ("<", "==") for each in requirement.specifier)
            assert bounded or requirement.name == "pycuda", f"{requirement} of {extra}"


@pytest.mark.parametrize(
    ("version", "remedy"), [((3, 10), "with Python 3.11 or newer, pip install"), ((3, 11), "pip ins")]
)
def test_an_onnxruntime_that_cannot_tell_where_it_runs_is_refused_with_what_helps(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], remedy: str
) -> None:
    class Old:
        __version__ = "1.23.2"

        class InferenceSession:
            pass

    monkeypatch.setattr(ort_gpu, "import_onnxruntime", lambda extra: Old)
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(DependencyError, match=f"1.23.2 cannot say what it runs on the GPU: {remedy}"):
        ort_gpu._import("gpu")
