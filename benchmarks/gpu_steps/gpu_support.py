"""GPUs, drivers and libraries that the backends need, and what is said where they do not fit.

Sources: the release notes of CUDA 13.0 (compute capability 7.5 and driver 580 or newer), TensorRT 10 and 11,
TensorRT-RTX 1.7.1 and its plugin for ONNX Runtime.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable
from dataclasses import dataclass

TARGETS = ("tensorrt", "tensorrt-rtx")  # of engines; the backend tensorrt runs both
BACKENDS = ("torch", *TARGETS, "ort-cuda", "ort-tensorrt-rtx")
# Of a driver: the first version of its branch for a CUDA. A library for CUDA 12 runs with a driver for CUDA 13.
DRIVERS = {12: 525, 13: 580}
OLDEST = (7, 5)  # with CUDA 13, and TensorRT 10 and 11
RTX = ((7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (12, 0), (12, 1))
RTX_BACKENDS = {"tensorrt-rtx": (7, 5), "ort-tensorrt-rtx": (8, 0)}  # with the oldest of `RTX` that each one runs on
TITLES = {
    "torch": "PyTorch for CUDA 13", "tensorrt": "TensorRT 10 or 11", "ort-cuda": "onnxruntime-gpu for CUDA 13",
    "tensorrt-rtx": "TensorRT-RTX", "ort-tensorrt-rtx": "TensorRT-RTX in ONNX Runtime",
}
GENERATIONS = {
    (5, 0): "Maxwell", (6, 0): "Pascal", (7, 0): "Volta", (7, 5): "Turing", (8, 0): "Ampere", (8, 9): "Ada",
    (9, 0): "Hopper", (10, 0): "Blackwell",
}
# Distributions whose own version begins with CUDA's; those of CUDA 13 on have no -cu in their names.
LIKE_CUDA = ("nvidia-cublas", "nvidia-cuda-runtime", "nvidia-cuda-nvrtc")


@dataclass(frozen=True)
class GpuFacts:
    """A GPU by ``nvidia-smi``, which needs no CUDA of a certain version: ``capability`` is its compute capability,
    ``driver`` a version such as ``580.159.03``."""

    name: str
    capability: tuple[int, int]
    driver: str

    @property
    def title(self) -> str:
        """Such as ``NVIDIA H200 (compute capability 9.0, Hopper)``."""
        known = [name for oldest, name in GENERATIONS.items() if oldest <= self.capability]
        return f"{self.name} (compute capability {_dotted(self.capability)}{f', {known[-1]}' if known else ''})"


def read_facts(line: str) -> GpuFacts | None:
    """A GPU from a line of ``nvidia-smi --query-gpu=name,compute_cap,driver_version --format=csv,noheader``; None for
    any other text."""
    found = re.fullmatch(r"\s*(.+?)\s*,\s*(\d+)\.(\d+)\s*,\s*(\d[\d.]*)\s*", line)
    return GpuFacts(found[1], (int(found[2]), int(found[3])), found[4]) if found else None


def cannot_run(backend: str, gpu: GpuFacts) -> str | None:
    """Text about a backend that cannot run on a GPU with its driver, and what can; None for one that may."""
    title, capability = TITLES[backend], gpu.capability
    oldest = RTX_BACKENDS.get(backend, OLDEST)
    if capability < oldest:
        return f"{title} begins with compute capability {_dotted(oldest)}, this is {gpu.title}: {_instead(gpu)}"
    if backend in RTX_BACKENDS and capability not in RTX:
        return f"{title} does not run on {gpu.title}: {_instead(gpu)}"
    if backend != "torch" and (why := old_driver(gpu)):  # PyTorch says so itself: it may be one for an older CUDA
        return f"{title}: {why}"
    return None


def old_driver(gpu: GpuFacts) -> str | None:
    """Text about a driver that is older than CUDA 13, with what helps; None for another."""
    branch, (newest, needed) = int(gpu.driver.split(".")[0]), max(DRIVERS.items())
    if branch >= needed:
        return None
    known = [cuda for cuda, first in DRIVERS.items() if first <= branch]
    has = f"has CUDA {known[-1]}" if known else f"is older than CUDA {min(DRIVERS)}"
    return (f"the driver {gpu.driver} {has}, libraries for CUDA {newest} need {needed} or newer: update the driver, or "
            f"take libraries for the CUDA that it has")


def mixed_cudas(installed: Iterable[tuple[str, str]] | None = None) -> str | None:
    """Text about libraries for several major versions of CUDA that are beside each other; None where there is one.
    ``installed`` are names and versions of distributions, by default of this Python."""
    found: dict[int, list[str]] = {}
    for name, version in sorted(set(_distributions() if installed is None else installed)):
        plain = re.sub(r"[-_.]+", "-", name).lower()
        major = re.search(r"-cu(\d\d)(?=-|$)", plain)
        if plain.startswith(("nvidia-", "tensorrt-", "onnxruntime-ep-")) and (major or plain in LIKE_CUDA):
            number = int(major[1] if major else version.split(".")[0])
            found.setdefault(number, []).append(f"{plain} {version}")
    if len(found) < 2:
        return None
    listed = "; ".join(f"CUDA {number}: {', '.join(names[:3])}" for number, names in sorted(found.items()))
    return (f"libraries for several CUDAs are side by side ({listed}): one may load another's. Where a backend fails, "
            "make an environment with those of one CUDA")


def _instead(gpu: GpuFacts) -> str:
    """The backends that run on a GPU, as far as its compute capability says it."""
    if gpu.capability < OLDEST:
        return ("TensorRT 8.6 (--backend tensorrt, graphs of --lowering tensorrt-classic) and a PyTorch for CUDA 12 "
                "may run on it, ort runs on the CPU")
    runs = [name for name in BACKENDS if gpu.capability >= RTX_BACKENDS.get(name, OLDEST)
            and (name not in RTX_BACKENDS or gpu.capability in RTX)]
    return f"{', '.join(runs)} run on it"


def _distributions() -> list[tuple[str, str]]:
    return [(each.metadata["Name"] or "", each.version) for each in importlib.metadata.distributions()]


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
