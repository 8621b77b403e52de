"""One small model, its three bundles and its traced graphs: made once, since tracing takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_model import small_checkpoint

from flamingo_rt.checkpoints import StoredModel, open_checkpoint
from flamingo_rt.export.cases import Reference, compute_reference
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.progress import silent


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small")


@pytest.fixture(scope="session")
def stored(checkpoint: Path) -> StoredModel:
    return open_checkpoint(checkpoint)


@pytest.fixture(scope="session")
def told() -> dict[str, tuple[int, list[int]]]:
    """What the export of `bundle` told of its progress: stages in order, with their size and every advance."""
    return {}


@pytest.fixture(scope="session")
def bundles(stored: StoredModel, tmp_path_factory: pytest.TempPathFactory, told) -> Callable[[str], Path]:
    """The small model as a bundle with matrices of a type, exported once for each."""
    folder = tmp_path_factory.mktemp("bundles")

    @contextmanager
    def progress(stage: str, total: int) -> Iterator[Callable[[int], None]]:
        assert stage not in told
        told[stage] = (total, [])
        yield told[stage][1].append

    def bundle(dtype: str) -> Path:
        if not (folder / dtype).exists():
            export_model(stored, folder / dtype, dtype=dtype, progress=progress if dtype == "fp32" else silent)
        return folder / dtype

    return bundle


@pytest.fixture(scope="session")
def bundle(bundles: Callable[[str], Path]) -> Path:
    return bundles("fp32")


@pytest.fixture(scope="session")
def reference(stored: StoredModel) -> Reference:
    """What the model in memory computes for every case."""
    return compute_reference(stored.load())
