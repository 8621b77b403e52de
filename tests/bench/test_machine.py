"""The record of a machine, with stand-ins for NVIDIA's libraries."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import pytest

from flamingo_rt.bench import machine
from flamingo_rt.bench.accelerators import Gpu, Jetson, jetson, nvidia_gpus
from flamingo_rt.bench.machine import cpu_name, describe_machine, memory_now


def test_this_machine_can_be_described_and_written_as_json() -> None:
    found = describe_machine()
    assert found.cores >= 1
    assert found.cpu
    assert found.libraries["numpy"]
    assert json.loads(json.dumps(asdict(found)))["python"] == found.python


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"proc/cpuinfo": "processor : 0\nmodel name\t: Fast CPU 9\n"}, "Fast CPU 9"),
        ({"proc/cpuinfo": "processor : 0\n\nModel : Raspberry Pi 5\n"}, "Raspberry Pi 5"),
        ({"proc/cpuinfo": "processor : 0\n", "proc/device-tree/model": "Jetson Orin Nano\0"}, "Jetson Orin Nano"),
    ],
)
def test_the_processors_name_is_found_where_linux_keeps_it(tmp_path: Path, files: dict[str, str], name: str) -> None:
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert cpu_name(tmp_path) == name


def test_a_processor_without_a_name_has_some_text(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "")
    assert cpu_name(tmp_path) == "unknown"


def test_the_peak_of_memory_is_no_less_than_what_is_in_use() -> None:
    found = memory_now()
    assert found.current is None or found.peak is None or found.peak >= found.current > 0


def fake_nvml(**changes) -> SimpleNamespace:
    def no_power(handle):
        raise RuntimeError("not supported")

    functions = {
        "NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: b"570.1",
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: "NVIDIA H100",
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=80 << 30),
        "nvmlDeviceGetClockInfo": lambda handle, kind: {1: 1980, 2: 2619}[kind],
        "nvmlDeviceGetEnforcedPowerLimit": no_power,
    }
    return SimpleNamespace(**(functions | changes))


def test_nvml_is_asked_for_every_gpu_and_may_not_know_everything(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    assert nvidia_gpus() == (Gpu("NVIDIA H100", "570.1", 80 << 30, 1980, 2619, None),)


def test_a_missing_or_failing_nvml_is_recorded_as_nothing(monkeypatch) -> None:
    def fail(*arguments):
        raise RuntimeError("driver not loaded")

    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvidia_gpus() is None
    for name in ("nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetName"):
        monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(**{name: fail}))
        assert nvidia_gpus() is None


class FakeBoard:
    """A stand-in for the object that jtop gives inside its ``with`` block."""

    running = True
    board = MappingProxyType({"hardware": {"Model": "Jetson AGX Orin"}})
    nvpmodel = "MAXN"
    jetson_clocks = True
    cpu = MappingProxyType({"cpu": [{"freq": {"cur": 2_201_600}}, {"freq": {}}]})
    gpu = MappingProxyType({"gpu": {"freq": {"cur": 1_300_500}}})

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        return None

    def ok(self) -> bool:
        return self.running


def test_a_jetsons_power_mode_and_clocks_are_recorded(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "jtop", SimpleNamespace(jtop=FakeBoard))
    assert jetson() == Jetson("Jetson AGX Orin", "MAXN", True, {"cpu0": 2201.6, "gpu": 1300.5})


def test_figures_that_an_old_jetson_stats_lacks_are_left_out(monkeypatch) -> None:
    class Old(FakeBoard):
        board = cpu = gpu = None

        @property
        def nvpmodel(self):
            raise KeyError("nvpmodel")

    monkeypatch.setitem(sys.modules, "jtop", SimpleNamespace(jtop=Old))
    assert jetson() == Jetson("Jetson", None, True, {})


def test_without_jetson_stats_or_its_service_nothing_is_recorded(monkeypatch) -> None:
    class Stopped(FakeBoard):
        def __enter__(self):
            raise RuntimeError("the jtop.service is not active")

    class Ending(FakeBoard):
        running = False

    monkeypatch.setitem(sys.modules, "jtop", None)
    assert jetson() is None
    for board in (Stopped, Ending):
        monkeypatch.setitem(sys.modules, "jtop", SimpleNamespace(jtop=board))
        assert jetson() is None
