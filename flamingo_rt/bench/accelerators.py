"""GPU and Jetson details from NVIDIA's libraries, where they are installed (nvidia-ml-py, jetson-stats).

They only go into the record: no failure of theirs makes a measurement fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """Clocks in MHz, power in watts, memory in bytes; None for what the driver does not report."""

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
        return tuple(_gpu(pynvml, handle, driver) for handle in handles)
    except Exception:
        return None
    finally:
        _told(pynvml.nvmlShutdown)


def _gpu(nvml: Any, handle: Any, driver: str) -> Gpu:
    return Gpu(
        name=_text(nvml.nvmlDeviceGetName(handle)),
        driver=driver,
        memory_bytes=_told(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total)),
        sm_clock=_told(lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))),
        memory_clock=_told(lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM))),
        power_limit=_told(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3),
    )


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
    cores = {f"cpu{index}": core for index, core in enumerate(_told(lambda: list(board.cpu["cpu"])) or [])}
    gpus = _told(lambda: dict(board.gpu.items())) or {}
    found = {str(name): _current_clock(unit) for name, unit in (cores | gpus).items()}
    return {name: clock / 1e3 for name, clock in found.items() if clock is not None}


def _current_clock(unit: Any) -> float | None:
    return _told(lambda: float(unit["freq"]["cur"]))


def _told(ask: Callable[[], Any]) -> Any:
    """Return the answer, or None when asking fails: some boards and drivers do not support every query."""
    try:
        return ask()
    except Exception:
        return None


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
