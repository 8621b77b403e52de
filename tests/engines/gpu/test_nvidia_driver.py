"""The GPU as its driver describes it."""

from __future__ import annotations

import ctypes

import pytest

from flamingo_rt.engines.gpu import nvidia_driver
from flamingo_rt.engines.gpu.nvidia_driver import Gpu, find_gpu

ATTRIBUTES = {18: 1, 75: 8, 76: 7}


class MadeUpDriver:
    """libcuda with one GPU, or with the status that each of its functions gives."""

    def __init__(self, **statuses: int) -> None:
        self.statuses = statuses

    def cuInit(self, flags: int) -> int:
        return self.statuses.get("cuInit", 0)

    def cuDeviceGet(self, device, index: int) -> int:
        device._obj.value = 3
        return self.statuses.get("cuDeviceGet", 0)

    def cuDeviceGetName(self, name, size: int, device) -> int:
        name.value = b"Orin"
        return self.statuses.get("cuDeviceGetName", 0)

    def cuDeviceTotalMem_v2(self, memory, device) -> int:
        memory._obj.value = 8 << 30
        return self.statuses.get("cuDeviceTotalMem_v2", 0)

    def cuDeviceGetAttribute(self, value, number: int, device) -> int:
        assert device.value == 3
        value._obj.value = ATTRIBUTES[number]
        return 0


def test_the_first_gpu_is_described(monkeypatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: MadeUpDriver())
    assert find_gpu() == Gpu("Orin", "8.7", 8 << 30, integrated=True)


def test_without_a_driver_there_is_none(monkeypatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(nvidia_driver.ctypes, "CDLL", missing)
    assert find_gpu() is None


@pytest.mark.parametrize("function", ["cuInit", "cuDeviceGet", "cuDeviceGetName", "cuDeviceTotalMem_v2"])
def test_a_driver_without_a_gpu_has_none(monkeypatch, function: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: MadeUpDriver(**{function: 100}))
    assert find_gpu() is None
