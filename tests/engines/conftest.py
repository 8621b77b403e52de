"""Small bundles of the TensorRT lowerings, made once; a test that writes into one takes a copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_model import small_checkpoint

from flamingo_rt.bundle import Bundle, read_bundle
from flamingo_rt.checkpoints import open_checkpoint
from flamingo_rt.export.pipeline import export_model


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
