"""What the machine can do, measured between the runs: the best counts, since it drifts within minutes."""

from __future__ import annotations

from dataclasses import dataclass

from flamingo_rt.bench.bandwidth import BUFFER_BYTES, BandwidthProbe
from flamingo_rt.bench.matrix_rate import matrix_product, product_rate


@dataclass(frozen=True)
class Rates:
    """The best of ``probes`` measurements, and each of them. Bytes and FLOPs per second, and what measured them."""

    bandwidth: float
    bandwidth_by: str
    flops: float
    flops_by: str
    bandwidths: tuple[float, ...]
    flops_each: tuple[float, ...]


class RateProbe:
    """Measures both rates each time `probe` is called; a ``with`` block, for it has a process of its own."""

    def __init__(self, backend: str, threads: int | None, cores: int, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._bandwidth = BandwidthProbe(threads or cores, buffer_bytes)
        self._product, self._product_name = matrix_product(backend, threads)
        self._reads: list[tuple[float, str]] = []
        self._flops: list[float] = []

    def __enter__(self) -> RateProbe:
        self._bandwidth.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bandwidth.__exit__(*exception)

    def probe(self) -> None:
        """Measure once more."""
        self._reads.append(self._bandwidth.read())
        self._flops.append(product_rate(self._product))

    def best(self) -> Rates:
        """The best so far."""
        bandwidth, way = max(self._reads)
        return Rates(
            bandwidth, way, max(self._flops), self._product_name, tuple(rate for rate, _ in self._reads),
            tuple(self._flops),
        )
