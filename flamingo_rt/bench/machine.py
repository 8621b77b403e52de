"""The machine of a measurement: processor, memory, system, libraries, and the memory this process takes."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from flamingo_rt import __version__
from flamingo_rt.bench.accelerators import Gpu, Jetson, jetson, nvidia_gpus
from flamingo_rt.cores import core_count

LIBRARIES = (
    "numpy", "Pillow", "tokenizers", "onnxruntime", "onnxruntime-gpu", "torch", "tensorrt", "tensorrt-rtx-cu13",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13", "pycuda", "cuda-bindings",
)
RESET_PEAK = "5"  # proc(5), /proc/pid/clear_refs


@dataclass(frozen=True)
class Machine:
    """``cores`` are those this process may use. ``libraries`` are versions, None for what is not installed. ``gpus``
    and ``jetson`` are None where no library reports them."""

    cpu: str
    cores: int
    memory_bytes: int | None
    system: str
    python: str
    libraries: dict[str, str | None]
    gpus: tuple[Gpu, ...] | None
    jetson: Jetson | None


@dataclass(frozen=True)
class Memory:
    """Resident memory of this process in bytes, mapped files included: now, and the most there was. None: unknown."""

    current: int | None
    peak: int | None


def describe_machine() -> Machine:
    """This machine, as it is now."""
    return Machine(
        cpu=cpu_name(), cores=core_count(), memory_bytes=_memory_bytes(), system=platform.platform(),
        python=platform.python_version(), libraries={"flamingo-rt": __version__, **{n: _version(n) for n in LIBRARIES}},
        gpus=nvidia_gpus(), jetson=jetson(),
    )


def cpu_name(root: Path = Path("/")) -> str:
    """The processor's name from /proc/cpuinfo, else the board's name (Jetson, Raspberry Pi), else what Python knows."""
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model") and value.strip():
            return value.strip()
    board = _text(root / "proc/device-tree/model").strip("\0 \n")
    return board or platform.processor() or platform.machine() or "unknown"


def memory_now() -> Memory:
    """Resident memory of this process."""
    current, peak = _resident(), _peak()
    return Memory(current, max(peak, current or 0) if peak is not None else None)  # the kernel counts the two apart


def reset_peak() -> None:
    """Count the peak from now on, where the system allows it (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    except OSError:
        return


def _resident() -> int | None:
    pages = _text(Path("/proc/self/statm")).split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else None


def _peak() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
