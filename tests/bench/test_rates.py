"""Measured rates of the machine: which code measures each, and the best of several runs counts."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from flamingo_rt.bench import bandwidth, matrix_rate, rates
from flamingo_rt.bench.bandwidth import BandwidthProbe
from flamingo_rt.bench.matrix_rate import matrix_product
from flamingo_rt.bench.rates import HostProbe, RateProbe
from flamingo_rt.bench.results import Against
from flamingo_rt.engines.matmul_graph import matmul_graph
from flamingo_rt.errors import DataError


def test_reading_memory_gives_a_rate_and_says_how() -> None:
    with BandwidthProbe(threads=2, buffer_bytes=1 << 20) as probe:
        first, way = probe.read()
        second, _ = probe.read()
    assert first > 0
    assert second > 0
    assert way.startswith("np.")
    assert way.endswith("1 MB, 2 threads")


def test_the_measuring_process_ends_with_the_block_whatever_happened() -> None:
    probe = BandwidthProbe(threads=1, buffer_bytes=1 << 20)
    with pytest.raises(KeyboardInterrupt), probe:
        raise KeyboardInterrupt
    assert probe._process.returncode is not None


def test_a_process_that_cannot_be_started_or_dies_is_explained(monkeypatch) -> None:
    with BandwidthProbe(threads=1, buffer_bytes=-1) as probe, pytest.raises(DataError, match="could not be measured"):
        probe.read()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(DataError, match="cannot be started"), BandwidthProbe(threads=1):
        pass


def test_the_hand_made_graph_is_a_valid_one_and_multiplies() -> None:
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal((8, 8), dtype=np.float32) for _ in range(2))
    content = matmul_graph(8, weight=weight)
    onnx.checker.check_model(onnx.load_from_string(content))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("backend", "named"), [("ort", "ONNX Runtime"), ("torch", "PyTorch"), ("other", "numpy")])
def test_products_go_through_the_models_backend(monkeypatch, backend: str, named: str) -> None:
    monkeypatch.setattr(matrix_rate, "SIZE", 16)
    product, name = matrix_product(backend, threads=1)
    product()
    assert named in name
    assert "16³" in name


def test_without_products_the_ceiling_is_that_of_memory() -> None:
    class NoProducts:
        def __enter__(self) -> NoProducts:
            return self

        def __exit__(self, *exception: object) -> None:
            """Do nothing: no process was started."""

        def bandwidth(self) -> tuple[float, str]:
            return 10.0, "by hand"

        def products(self) -> tuple[None, str]:
            return None, "not measured: why"

    with RateProbe(NoProducts()) as probe:
        probe.probe()
    best = probe.best()
    assert (best.flops, best.flops_by, best.flops_each) == (None, "not measured: why", ())
    against = Against.of(10**9, 20, 4000.0, best)
    assert (against.bound, against.ceiling, against.reached) == ("memory", 2000.0, 0.5)


def test_the_best_of_all_probes_counts(monkeypatch) -> None:
    reads, flops = iter([(1.0, "a"), (3.0, "b"), (2.0, "c")]), iter([7.0, 5.0, 6.0])
    monkeypatch.setattr(bandwidth.BandwidthProbe, "read", lambda self: next(reads))
    monkeypatch.setattr(rates, "product_rate", lambda product, operations: next(flops))
    with RateProbe(HostProbe("other", 1, 1, 1 << 20)) as probe:
        for _ in range(3):
            probe.probe()
    best = probe.best()
    assert (best.bandwidth, best.bandwidth_by, best.flops) == (3.0, "b", 7.0)
    assert (best.bandwidths, best.flops_each) == ((1.0, 3.0, 2.0), (7.0, 5.0, 6.0))
