"""One small model, its three bundles and its traced graphs: made once, since tracing takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir
import pytest
from small_model import small_checkpoint

from flamingo_rt.checkpoints import StoredModel, open_checkpoint
from flamingo_rt.export import pipeline, tracing
from flamingo_rt.export.checks.parity_cases import Reference, compute_reference
from flamingo_rt.export.folding import folded_tensors
from flamingo_rt.export.graph_weights import Weights
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
    """Progress of the export of `bundle`: its stages in order, with their size and every advance."""
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
def traced(stored: StoredModel) -> dict[str, tuple[onnx_ir.Model, onnx_ir.Model]]:
    """Each graph of the small model, with its weights to be read: as the exporter's optimizer leaves it, and
    simplified."""
    before: list[onnx_ir.Model] = []

    def recorded(graph: onnx_ir.Graph, fold_factors: bool) -> None:
        before.append(onnx_ir.Model(graph.clone(), ir_version=10))
        simplify(graph, fold_factors)

    simplify = tracing.simplify
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "simplify", recorded)
        after = dict(tracing.trace_graphs(stored.config, "ort", Weights(folded_tensors(stored.tensors)).bind))
    for plain, simple in zip(before, after.values(), strict=True):  # the contract's letters
        for values, others in ((plain.graph.inputs, simple.graph.inputs), (plain.graph.outputs, simple.graph.outputs)):
            for value, other in zip(values, others, strict=True):
                value.shape = other.shape
    return {name: pair for name, *pair in zip(after, before, after.values(), strict=True)}


@pytest.fixture
def traced_before(traced, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of the small model take the graphs that were traced already."""
    def again(config, lowering, bind, fold_factors, dtype) -> Iterator[tuple[str, onnx_ir.Model]]:
        for name, (_, graph) in traced.items():
            yield name, graph.clone()

    monkeypatch.setattr(pipeline, "trace_graphs", again)


@pytest.fixture(scope="session")
def reference(stored: StoredModel) -> Reference:
    """Results of the model in memory for every case."""
    return compute_reference(stored.load())
