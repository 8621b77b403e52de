"""A small model in PyTorch, and pictures in classes to ask it about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from small_model import small_checkpoint

from flamingo_rt.evaluation.task import Item, Task
from flamingo_rt.loading import load
from flamingo_rt.runtime.model import Model

CLASSES = ("red circle", "blue square", "star")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(small_checkpoint(tmp_path_factory.mktemp("evaluation") / "checkpoint"))


@pytest.fixture(scope="session")
def items(tmp_path_factory: pytest.TempPathFactory) -> tuple[Item, ...]:
    """Twelve pictures, four of each class."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    found = []
    for number in range(12):
        file = folder / f"{number}.png"
        PIL.Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(file)
        found.append(Item(f"p{number}", file, None, (CLASSES[number % 3],)))
    return tuple(found)


@pytest.fixture
def captions(items: tuple[Item, ...]) -> Task:
    """A task that asks for captions, the last four pictures with shots from the others."""
    return Task("captions", "caption", "exact", items[8:], items[:8], max_new_tokens=5)


@pytest.fixture
def classes(items: tuple[Item, ...]) -> Task:
    return Task("classes", "classes", "accuracy", items[8:], items[:8], CLASSES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"
