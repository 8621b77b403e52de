"""Memory bandwidth and matrix rate of the machine, measured between the runs: the best measurement counts, since the
machine drifts within minutes. For a backend on a device they are the device's, measured by the backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from flamingo_rt.backend import Backend
from flamingo_rt.bench.bandwidth import BUFFER_BYTES, BandwidthProbe
from flamingo_rt.bench.matrix_rate import SIZE, matrix_product
from flamingo_rt.product_rate import product_rate


@dataclass(frozen=True)
class Rates:
    """The best of several measurements, and each of them. Bytes and FLOPs per second, and what measured them; where
    products could not be measured, ``flops`` is None and ``flops_by`` says why."""

    bandwidth: float
    bandwidth_by: str
    flops: float | None
    flops_by: str
    bandwidths: tuple[float, ...]
    flops_each: tuple[float, ...]


class Measured(Protocol):
    """A processor or device whose rates are measured within its ``with`` block."""

    def __enter__(self) -> Measured: ...

    def __exit__(self, *exception: object) -> None: ...

    def bandwidth(self) -> tuple[float, str]:
        """Bytes of memory per second, and how they were moved."""
        ...

    def products(self) -> tuple[float | None, str]:
        """FLOPs per second of matrix products, and what computed them; None and why where nothing could."""
        ...


class HostProbe:
    """The CPU, and its memory, which a process of its own reads."""

    def __init__(self, backend: str, threads: int | None, cores: int, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._memory = BandwidthProbe(threads or cores, buffer_bytes)
        self._product, self._product_name = matrix_product(backend, threads)

    def __enter__(self) -> HostProbe:
        self._memory.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._memory.__exit__(*exception)

    def bandwidth(self) -> tuple[float, str]:
        """Bytes read per second. Raises `DataError` when it cannot be measured."""
        return self._memory.read()

    def products(self) -> tuple[float, str]:
        """FLOPs per second through the backend."""
        return product_rate(self._product, 2 * SIZE**3), self._product_name


def probe_of(
    backend: Backend, threads: int | None, cores: int, buffer_bytes: int = BUFFER_BYTES
) -> Measured:
    """The probe of the device that a backend runs on, or of the CPU."""
    return backend.device_probe() or HostProbe(backend.name, threads, cores, buffer_bytes)


class RateProbe:
    """Measures both rates each time `probe` is called, within a ``with`` block."""

    def __init__(self, measured: Measured) -> None:
        self._measured = measured
        self._moved: list[tuple[float, str]] = []
        self._flops: list[float] = []
        self._flops_by = ""

    def __enter__(self) -> RateProbe:
        self._measured.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._measured.__exit__(*exception)

    def probe(self) -> None:
        """Measure once more."""
        self._moved.append(self._measured.bandwidth())
        flops, self._flops_by = self._measured.products()
        if flops is not None:
            self._flops.append(flops)

    def best(self) -> Rates:
        """The best so far."""
        bandwidth, way = max(self._moved)
        return Rates(
            bandwidth, way, max(self._flops, default=None), self._flops_by, tuple(rate for rate, _ in self._moved),
            tuple(self._flops),
        )
