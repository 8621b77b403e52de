"""Small bundles of the TensorRT lowerings, made once (a test that writes into one takes a copy), and their runners."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import FakeGpu
from fake_onnxruntime import install
from runners import OnCuda, Runner
from small_model import small_checkpoint

import flamingo_rt
from flamingo_rt import Image
from flamingo_rt.bundle import Bundle, read_bundle
from flamingo_rt.checkpoints import open_checkpoint
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.runtime.model import Model


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The small model as a bundle of a lowering that computes in a type."""
    folder = tmp_path_factory.mktemp("engines")
    made: dict[tuple[str, str], Path] = {}

    def export(lowering: str, compute: str) -> Path:
        if (lowering, compute) not in made:
            checkpoint, out = folder / "checkpoint", folder / f"{lowering}-{compute}"
            if not checkpoint.exists():
                small_checkpoint(checkpoint)
            export_model(open_checkpoint(checkpoint), out, lowering=lowering, compute=compute, compare=False)
            made[lowering, compute] = out
        return made[lowering, compute]

    return export


@pytest.fixture
def bundle_of(exported: Callable[[str, str], Path], tmp_path: Path) -> Callable[..., Bundle]:
    """A bundle of a lowering and type, the test's own."""

    def copy(lowering: str = "tensorrt", compute: str = "fp16") -> Bundle:
        folder = tmp_path / f"{lowering}-{compute}"
        shutil.copytree(exported(lowering, compute), folder)
        return read_bundle(folder)

    return copy


@pytest.fixture
def counted() -> tuple[Callable, dict[str, int]]:
    """A progress, and what its stages have advanced by."""
    sums: dict[str, int] = {}

    @contextmanager
    def progress(stage: str, total: int):
        sums[stage] = 0

        def advance(amount: int) -> None:
            sums[stage] += amount

        yield advance

    return progress, sums


# The runner, on stand-ins for TensorRT and CUDA


class Bundles(dict):
    """By lowering, in float32, and by lowering and type, such as ``ort-fp16``; exported when they are asked for."""

    def __init__(self, exported: Callable[[str, str], Path]) -> None:
        self._exported = exported

    def __missing__(self, name: str) -> Bundle:
        lowering, compute = (name.removesuffix("-fp16"), "fp16") if name.endswith("-fp16") else (name, "fp32")
        self[name] = read_bundle(self._exported(lowering, compute))
        return self[name]


@pytest.fixture(scope="session")
def bundles(exported) -> dict[str, Bundle]:
    """The same small model in each lowering. A cache slot is 64 bytes a row: aligned in batches of four."""
    return Bundles(exported)


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu()


@pytest.fixture
def runner(bundles, tmp_path, gpu, monkeypatch) -> Runner:
    return Runner(bundles, tmp_path, gpu, monkeypatch)


@pytest.fixture
def on_cuda(bundles, gpu, monkeypatch) -> OnCuda:
    return OnCuda(bundles, install(monkeypatch, gpu))


@pytest.fixture(scope="session")
def ort(bundles) -> Model:
    return flamingo_rt.load(bundles["ort"].path, "ort", threads=1)


@pytest.fixture(scope="session")
def ort_half(bundles) -> Model:
    return flamingo_rt.load(bundles["ort-fp16"].path, "ort", threads=1)


@pytest.fixture(scope="session")
def pictures() -> list[Image]:
    rng = np.random.default_rng(0)
    return [Image(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)) for _ in range(4)]


@pytest.fixture(scope="session")
def text(ort) -> str:
    """A prompt whose answer does not end by itself within 8 tokens."""
    texts = ("Output:", "a red", "Question: how many", "two stars", "blue", "are there? Answer:", "square")
    return next(
        text for text in texts
        if ort.generate(text, max_new_tokens=8).result().stop_reason == "max_new_tokens"
    )
