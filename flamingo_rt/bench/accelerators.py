"""What NVIDIA's libraries tell of a GPU or a Jetson, where they are installed (nvidia-ml-py, jetson-stats).

They are for the record: whatever goes wrong with them, a measurement does not fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """Clocks in MHz, power in watts, memory in bytes; None for what the driver does not tell."""

    name: str
    driver: str
    memory_bytes: int | None
    sm_clock: int | None
    memory_clock: int | None
    power_limit: float | None


@dataclass(frozen=True)
class Jetson:
    """``power_mode`` is nvpmodel's, ``clocks_locked`` what jetson_clocks does; clocks in MHz, by core and engine."""

    board: str
    power_mode: str | None
    clocks_locked: bool | None
    clocks: dict[str, float]


def nvidia_gpus() -> tuple[Gpu, ...] | None:
    """Every NVIDIA GPU that NVML knows, or None without pynvml or a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # not installed, or no driver: NVMLError
        return None
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return tuple(
            Gpu(
                name=_text(pynvml.nvmlDeviceGetName(handle)),
                driver=driver,
                memory_bytes=_told(lambda h=handle: int(pynvml.nvmlDeviceGetMemoryInfo(h).total)),
                sm_clock=_told(lambda h=handle: int(pynvml.nvmlDeviceGetClockInfo(h, pynvml.NVML_CLOCK_SM))),
                memory_clock=_told(lambda h=handle: int(pynvml.nvmlDeviceGetClockInfo(h, pynvml.NVML_CLOCK_MEM))),
                power_limit=_told(lambda h=handle: pynvml.nvmlDeviceGetEnforcedPowerLimit(h) / 1e3),
            )
            for handle in handles
        )
    except Exception:
        return None
    finally:
        _told(pynvml.nvmlShutdown)


def jetson() -> Jetson | None:
    """Power mode and clocks, or None without jetson-stats or its service."""
    try:
        from jtop import jtop

        with jtop() as board:
            if not board.ok():
                return None
            return Jetson(
                board=_told(lambda: str(board.board["hardware"]["Model"])) or "Jetson",
                power_mode=_told(lambda: str(board.nvpmodel)),
                clocks_locked=_told(lambda: bool(board.jetson_clocks)),
                clocks=_clocks(board),
            )
    except Exception:  # not installed, no service, not a Jetson
        return None


def _clocks(board: Any) -> dict[str, float]:
    """Current clocks; jtop gives kHz."""
    found = {}
    for index, core in enumerate(_told(lambda: list(board.cpu["cpu"])) or []):
        clock = _told(lambda c=core: float(c["freq"]["cur"]))
        if clock is not None:
            found[f"cpu{index}"] = clock / 1e3
    for name, gpu in (_told(lambda: dict(board.gpu.items())) or {}).items():
        clock = _told(lambda g=gpu: float(g["freq"]["cur"]))
        if clock is not None:
            found[str(name)] = clock / 1e3
    return found


def _told(ask: Callable[[], Any]) -> Any:
    """What is told, or None when asking fails: some boards and drivers do not know everything."""
    try:
        return ask()
    except Exception:
        return None


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
