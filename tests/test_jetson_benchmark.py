"""``benchmarks.jetson`` without a Jetson: sensors in a folder, the board's programs as scripts, the product's commands
replaced; one slow test runs the product too."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_gpu_benchmark import Runner, fails, works

from benchmarks import jetson
from benchmarks.gpu_steps.gpu_plan import Step
from benchmarks.jetson_steps import board, power
from benchmarks.jetson_steps.board import about_board
from benchmarks.jetson_steps.power import PowerLog, find_rails, integral, whole_board
from benchmarks.jetson_steps.readings import Unreadable, read_number
from flamingo_rt.bundle import read_description
from flamingo_rt.loading import PACKAGED_BUNDLE

CHIP = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
# An Orin Nano at rest: 4.9 W, of which the processor and the GPU 0.4 W.
SENSORS = {
    f"{CHIP}/in1_label": "VDD_IN", f"{CHIP}/in1_input": "5000", f"{CHIP}/curr1_input": "980",
    f"{CHIP}/in2_label": "VDD_CPU_GPU_CV", f"{CHIP}/in2_input": "4992", f"{CHIP}/curr2_input": "80",
    f"{CHIP}/in7_label": "sum of shunt voltages", f"{CHIP}/in7_input": "1",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "729600",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1510400",
    "sys/class/devfreq/17000000.gpu/cur_freq": "624750000", "sys/class/devfreq/17000000.gpu/min_freq": "624750000",
    "sys/class/devfreq/17000000.gpu/max_freq": "624750000",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal", "sys/class/thermal/thermal_zone0/temp": "47812",
    "sys/class/thermal/thermal_zone1/type": "cv0-thermal", "sys/class/thermal/thermal_zone1/temp": "-256000",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3\nmore", "proc/sys/kernel/osrelease": "5.15.148-tegra",
    "proc/meminfo": "MemTotal:        7802656 kB\nMemAvailable:    6291456 kB\nHugePages_Total: 0",
    "proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0  partition\t650216\t1024\t5",
}
NVPMODEL = "NVPM WARN: fan mode is not set\nNV Power Mode: MAXN_SUPER\n2"
TEXTS = {"nvpmodel": NVPMODEL, "jetson_clocks": "SOC family:tegra234  Machine:NVIDIA Jetson Orin Nano"}


def tree(root: Path, **changed: str | None) -> Path:
    """The stand-in of the board's files; ``changed`` are contents by the end of a path, None for a file that is not
    there."""
    for path, text in SENSORS.items():
        key = next((name for name in changed if path.endswith(name)), None)
        content = text if key is None else changed[key]
        if content is not None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(content)
    return root


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """The board's programs as scripts, alone on the path."""
    folder.mkdir()
    for name, text in TEXTS.items():
        script = folder / name
        script.write_text("#!/bin/sh\n" + scripts.get(name, "cat <<'end'\n" + text + "\nend\n"))
        script.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), "/bin", "/usr/bin"]))


# Power


def test_a_rail_s_power_is_its_voltage_times_its_current(tmp_path: Path) -> None:
    rails, problems = find_rails(tree(tmp_path))
    assert {rail.label: pytest.approx(rail.watts()) for rail in rails} == {"VDD_IN": 4.9, "VDD_CPU_GPU_CV": 0.39936}
    assert problems == []
    assert whole_board([rail.label for rail in rails]) == "VDD_IN"


def test_a_driver_that_gives_power_alone_is_read_too(tmp_path: Path) -> None:
    chip = tmp_path / "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon4"
    chip.mkdir(parents=True)
    (chip / "power1_input").write_text("31250000\n")
    (rail,), problems = find_rails(tmp_path)
    assert (rail.label, rail.watts(), problems) == ("hwmon4 channel 1", pytest.approx(31.25), [])
    (chip / "power1_label").write_text("VIN\n")
    assert find_rails(tmp_path)[0][0].label == "VIN"


@pytest.mark.parametrize(("file", "content", "said"), [
    ("curr1_input", "999999", "'999999' is no value from 0 to 40"), ("curr1_input", "-80", "'-80' is no value"),
    ("in1_input", "nan", "'nan' is no value"), ("in1_input", "", "'' is no value"),
    ("in1_input", "5.0 V", "'5.0 V' is no value"), ("curr1_input", "0", "VDD_IN reads 0 W, though the board runs"),
], ids=["too much", "negative", "nan", "empty", "a text", "nothing"])
def test_a_sensor_that_gives_nonsense_is_named_and_the_others_are_used(tmp_path: Path, file, content, said) -> None:
    rails, (problem,) = find_rails(tree(tmp_path, **{file: content}))
    assert [rail.label for rail in rails] == ["VDD_CPU_GPU_CV"]
    assert said in problem
    assert "hwmon3" in problem


def test_a_sensor_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    tree(tmp_path, curr2_input=None)
    (tmp_path / CHIP / "curr2_input").mkdir()
    rails, (problem,) = find_rails(tmp_path)
    assert [rail.label for rail in rails] == ["VDD_IN"]
    assert "curr2_input: Is a directory" in problem


def test_a_board_without_sensors_says_where_they_were_looked_for(tmp_path: Path) -> None:
    rails, (problem,) = find_rails(tmp_path)
    assert rails == []
    assert str(tmp_path / "sys/bus/i2c/drivers") in problem


def test_energy_is_the_area_under_the_samples() -> None:
    samples = [(0.0, 4.0), (10.0, 8.0), (20.0, 8.0)]
    assert integral(samples, 0.0, 20.0) == pytest.approx(60.0 + 80.0)
    assert integral(samples, 5.0, 15.0) == pytest.approx(35.0 + 40.0), "between two samples on the line"
    assert integral(samples, 8.0, 30.0) == pytest.approx(2 * 7.6 + 80.0 + 80.0), "the last one goes on"
    assert integral(samples, 21.0, 30.0) is None
    assert integral([], 0.0, 1.0) is None
    assert integral(samples, 10.0, 10.0) is None


def test_a_rail_that_fails_meanwhile_is_counted_and_the_others_go_on(tmp_path: Path) -> None:
    tree(tmp_path)
    times = iter([0.0, 0.0, 1.0, 1.0, 2.0])
    log = PowerLog(find_rails(tmp_path)[0], clock=lambda: next(times))
    log.take()
    log.take()
    (tmp_path / CHIP / "curr2_input").write_text("no")
    log.take()
    assert log.joules(0.0, 2.0) == {"VDD_IN": pytest.approx(9.8), "VDD_CPU_GPU_CV": pytest.approx(2 * 0.39936)}
    assert log.summary(0.0, 2.0)["unread"]["VDD_CPU_GPU_CV"].startswith("1 times: ")


def test_samples_are_taken_while_the_log_is_entered(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(power, "INTERVAL", 0.001)
    taken, enough = itertools.count(1.0), threading.Event()

    def clock() -> float:
        now = next(taken)
        if now > 6.0:
            enough.set()
        return now

    with PowerLog(find_rails(tree(tmp_path))[0], clock) as log:
        assert enough.wait(60)
    assert not log._thread.is_alive()
    assert log.samples["VDD_IN"][:3] == [(now, pytest.approx(4.9)) for now in (1.0, 3.0, 5.0)]


@pytest.mark.parametrize(("text", "said"), [("7", None), ("-1", "no value"), ("x", "no value")])
def test_a_number_is_within_its_bounds(tmp_path: Path, text, said) -> None:
    (tmp_path / "value").write_text(text)
    if said is None:
        assert read_number(tmp_path / "value", 0, 10, 0.5) == 3.5
        return
    with pytest.raises(Unreadable, match=said):
        read_number(tmp_path / "value", 0, 10, 0.5)


# The board


def test_the_state_of_the_board_is_read(tmp_path: Path, monkeypatch) -> None:
    programs(tmp_path / "bin", monkeypatch)
    found = about_board(tree(tmp_path / "root"))
    assert found["board"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert found["l4t"] == "# R36 (release), REVISION: 4.3"
    assert board.power_mode(found["power_mode"]) == "MAXN_SUPER"
    assert found["jetson_clocks"].startswith("SOC family")
    assert found["clocks"] == {
        "cpu0": {"now": pytest.approx(1510.4), "lowest": pytest.approx(729.6), "highest": pytest.approx(1510.4),
                 "held": False},
        "17000000.gpu": {"now": 624.75, "lowest": 624.75, "highest": 624.75, "held": True},
    }
    assert found["temperatures"] == {"cpu-thermal": pytest.approx(47.812)}
    assert found["memory"] == {"total": 7802656 * 1024, "available": 6291456 * 1024}
    assert found["swap"] == [{"area": "/dev/zram0", "bytes": 650216 * 1024, "used": 1024 * 1024}]
    assert len(found["problems"]) == 1
    assert "'-256000' is no value from -30 to 150" in found["problems"][0], "a zone that is switched off"


def test_a_program_that_is_missing_or_refuses_is_named(tmp_path: Path, monkeypatch) -> None:
    programs(tmp_path / "bin", monkeypatch, jetson_clocks="echo 'please run as root' >&2; exit 1\n")
    (tmp_path / "bin" / "nvpmodel").unlink()
    found = about_board(tree(tmp_path / "root"))
    assert not {"power_mode", "jetson_clocks"} & set(found)
    assert "nvpmodel -q: No such file or directory" in found["problems"]
    assert "jetson_clocks --show: status 1: please run as root" in found["problems"]


def test_a_program_that_hangs_is_ended(tmp_path: Path, monkeypatch) -> None:
    programs(tmp_path / "bin", monkeypatch, nvpmodel="sleep 600\n")
    monkeypatch.setattr(board, "COMMAND_SECONDS", 0.2)
    told, problem = board.told_by(("nvpmodel", "-q"))
    assert told is None
    assert problem.startswith("nvpmodel -q: status -9")


def test_a_machine_that_is_no_jetson_says_so_of_each_thing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = about_board(tmp_path)
    assert (found["clocks"], found["temperatures"]) == ({}, {})
    for name in ("device-tree/model", "nv_tegra_release", "nvpmodel", "jetson_clocks", "clocks under", "thermal zones",
                 "memory is not known", "swap is not known"):
        assert any(name in problem for problem in found["problems"]), name


@pytest.mark.parametrize("text", ["", "NV Power Mode", "garbage: MAXN"])
def test_a_power_mode_that_is_not_told_is_unknown(text) -> None:
    assert board.power_mode(text) is None


# Steps

DOCTOR = {"backends": {"tensorrt": works(), "ort": works("ort"), "ort-cuda": fails("no GPU")}}


def bundle_for(lowering: str, compute: str = "float16"):
    bundle = read_description(PACKAGED_BUNDLE)
    graphs = {name: replace(entry, lowering=lowering, compute=compute) for name, entry in bundle.graphs.items()}
    return replace(bundle, graphs=graphs)


def names(steps: list[Step]) -> list[str]:
    return [step.name for step in steps]


def test_a_bundle_runs_on_the_backend_that_its_graphs_are_for() -> None:
    assert jetson.backend_of(bundle_for("tensorrt-classic"), DOCTOR) == ("tensorrt", "")
    assert jetson.backend_of(bundle_for("ort", "float32"), DOCTOR) == ("ort", "")
    cuda = {"backends": DOCTOR["backends"] | {"ort-cuda": works("ort")}}
    assert jetson.backend_of(bundle_for("ort"), cuda) == ("ort-cuda", "")
    assert jetson.backend_of(bundle_for("ort", "float32"), cuda) == ("ort", ""), "CUDA's kernels take no float32"
    none = {"backends": DOCTOR["backends"] | {"tensorrt": fails("no module tensorrt")}}
    backend, why = jetson.backend_of(bundle_for("tensorrt"), none)
    assert (backend, why) == ("", "tensorrt graphs need the backend tensorrt: no module tensorrt")


def test_engines_are_built_once_and_share_the_budget(tmp_path: Path) -> None:
    made = jetson.steps_of(tmp_path, bundle_for("tensorrt"), "tensorrt", 6_000_000_000, 20.0, 96.0)
    assert names(made) == ["describe", "build", "verify", "bench", "decode"]
    assert sum(step.share for step in made) == pytest.approx(96.0)
    build, describe = made[1].command, made[0].command
    assert build[build.index("--capacity") + 1] == "1024"
    assert describe[describe.index("--memory") + 1] == "6000000000B"
    assert describe[describe.index("--device") + 1] == "jetson"
    (tmp_path / "engines" / "tensorrt-orin").mkdir(parents=True)
    (tmp_path / "engines" / "tensorrt-orin" / "engine.json").touch()
    assert "build" not in names(jetson.steps_of(tmp_path, bundle_for("tensorrt"), "tensorrt", None, 20.0, 96.0))
    assert "build" not in names(jetson.steps_of(tmp_path / "other", bundle_for("ort"), "ort", None, 20.0, 96.0))


def test_tokens_per_joule_are_of_the_whole_board_and_above_its_rest() -> None:
    log = PowerLog([])
    log.samples = {"VDD_IN": [(0.0, 10.0), (10.0, 10.0)], "VDD_CPU_GPU_CV": [(0.0, 4.0), (10.0, 4.0)]}
    decoded = {"tokens": 500, "start": 0.0, "end": 10.0}
    found = jetson.tokens_per_joule(decoded, log, {"VDD_IN": 5.0})
    assert found == {
        "tokens_per_second": 50.0, "rails": {"VDD_IN": 5.0, "VDD_CPU_GPU_CV": 12.5}, "rail": "VDD_IN", "watts": 10.0,
        "whole": 5.0, "above_rest": 10.0,
    }
    assert jetson.tokens_per_joule(decoded, log, {})["above_rest"] is None
    del log.samples["VDD_IN"]
    assert jetson.tokens_per_joule(decoded, log, {})["why_not"] == "no rail carries all that the board takes"
    assert jetson.tokens_per_joule(decoded | {"start": 50.0, "end": 60.0}, log, {})["why_not"] == (
        "power was not read meanwhile")


# From end to end


class Product(Runner):
    """Answers of the product's commands: the bench fails, decoding makes 100 tokens in one second of the clock."""

    def __init__(self, log: list[PowerLog]) -> None:
        super().__init__()
        self._log = log

    def answer(self, command: tuple[str, ...]) -> tuple[int, str]:
        if "doctor" in command:
            return 0, json.dumps(DOCTOR)
        if "bench" in command:
            return 1, "Error: out of memory"
        if "benchmarks.jetson_steps.decoding" in command:
            self._log[0].take()
            start = time.monotonic()
            for rail in self._log[0].samples.values():
                rail.append((start + 1.0, rail[-1][1]))
            return 0, json.dumps({"decoded": {"tokens": 100, "start": start, "end": start + 1.0, "context": 64}})
        return 0, json.dumps({"passed": True})


@pytest.fixture
def product(monkeypatch: pytest.MonkeyPatch) -> Product:
    """The product's commands replaced; the board's programs run."""
    logs: list[PowerLog] = []

    class Watched(PowerLog):
        def __enter__(self) -> Watched:
            logs.append(self)
            self.take()
            return self

        def __exit__(self, *exception: object) -> None:
            return

    monkeypatch.setattr(jetson, "PowerLog", Watched)
    monkeypatch.setattr(jetson.time, "sleep", lambda seconds: logs[0].take())
    runner = Product(logs)
    monkeypatch.setattr("benchmarks.gpu_run.run", runner)
    return runner


def lines(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def test_a_dry_run_writes_one_dated_file(tmp_path: Path, capsys, monkeypatch, product) -> None:
    programs(tmp_path / "bin", monkeypatch)
    root = tree(tmp_path / "root")
    status = jetson.main(["--model", str(PACKAGED_BUNDLE), "--root", str(root), "--results", str(tmp_path / "sent")])
    out = capsys.readouterr().out
    summary = json.loads(out.splitlines()[-1])
    assert (status, summary["errors"]) == (1, 1)
    assert Path(summary["results"]).name.endswith("-nvidia-jetson-orin-nano-developer-kit-jetson.jsonl")
    about, *outcomes = lines(summary["results"])
    assert (about["board"]["mode"], about["board"]["rails"]) == ("MAXN_SUPER", ["VDD_IN", "VDD_CPU_GPU_CV"])
    assert [each["step"] for each in outcomes] == [
        "at rest", "doctor", "describe", "verify", "bench", "decode", "board after"]
    assert outcomes[0]["power"]["watts"]["VDD_IN"] == pytest.approx(4.9)
    assert outcomes[4]["error"] == "status 1: Error: out of memory"
    energy = outcomes[5]["tokens_per_joule"]
    assert energy["whole"] == pytest.approx(100 / 4.9)
    assert energy["above_rest"] is None, "it takes no more than at rest"
    assert outcomes[6]["records"][0]["temperatures"] == {"cpu-thermal": pytest.approx(47.812)}
    assert "decode, tiny, ort: VDD_IN 4.90 W; VDD_CPU_GPU_CV 0.40 W; 100.0 tokens/s; 20.41 tokens per joule" in out
    assert "not known: " in out
    planned = product.commands[1]
    assert planned[planned.index("--memory") + 1] == "6442450944B"


def test_without_sensors_and_programs_the_rest_runs(tmp_path: Path, capsys, monkeypatch, product) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    jetson.main(["--model", str(PACKAGED_BUNDLE), "--root", str(tmp_path), "--results", str(tmp_path)])
    out = capsys.readouterr().out
    outcomes = lines(json.loads(out.splitlines()[-1])["results"])[1:]
    assert outcomes[0]["skipped"] == "there are no power sensors"
    assert [each["step"] for each in outcomes[1:5]] == ["doctor", "describe", "verify", "bench"]
    assert "not known: nvpmodel -q" in out


def test_a_bundle_whose_backend_does_not_work_is_a_row_with_the_reason(
    tmp_path: Path, capsys, monkeypatch, product
) -> None:
    shutil.copytree(PACKAGED_BUNDLE, tmp_path / "engines-only")
    manifest = tmp_path / "engines-only" / "manifest.json"
    described = json.loads(manifest.read_text())
    for entry in described["graphs"].values():
        entry["lowering"] = "tensorrt-classic"
    manifest.write_text(json.dumps(described))
    monkeypatch.setitem(DOCTOR["backends"], "tensorrt", fails("no module"))
    bundles = ["--model", str(tmp_path / "engines-only"), "--model", str(PACKAGED_BUNDLE)]
    jetson.main([*bundles, "--root", str(tree(tmp_path / "root")), "--results", str(tmp_path)])
    outcomes = lines(json.loads(capsys.readouterr().out.splitlines()[-1])["results"])[1:]
    (skipped,) = [each for each in outcomes if each["step"] == "bundle"]
    assert skipped["skipped"] == "tensorrt-classic graphs need the backend tensorrt: no module"
    assert "decode" in [each["step"] for each in outcomes], "of the other bundle"


@pytest.mark.parametrize(("arguments", "said"), [
    ([], "--model"), (["--model", "/nowhere"], "there is no bundle at /nowhere"),
    (["--model", str(PACKAGED_BUNDLE), "--minutes", "nan"], "--minutes is nan"),
])
def test_what_cannot_be_run_is_refused_before_anything_runs(capsys, product, arguments, said) -> None:
    with pytest.raises(SystemExit):
        jetson.main(arguments)
    assert said in capsys.readouterr().err
    assert product.commands == []


@pytest.mark.slow
def test_every_step_runs_on_the_cpu_beside_the_stand_in_of_the_sensors(tmp_path: Path, capsys, monkeypatch) -> None:
    programs(tmp_path / "bin", monkeypatch)
    arguments = ["--model", str(PACKAGED_BUNDLE), "--root", str(tree(tmp_path / "root")), "--results", str(tmp_path)]
    assert jetson.main([*arguments, "--decode-seconds", "1", "--rest-seconds", "0.3"]) == 0
    outcomes = lines(json.loads(capsys.readouterr().out.splitlines()[-1])["results"])[1:]
    records = {each["step"]: each["records"][-1] for each in outcomes if each["records"]}
    assert records["verify"]["passed"]
    assert records["describe"]["fits"]
    decoded = next(each for each in outcomes if each["step"] == "decode")
    spent = decoded["records"][-1]["decoded"]
    assert decoded["tokens_per_joule"]["whole"] == pytest.approx(
        spent["tokens"] / (4.9 * (spent["end"] - spent["start"])), rel=1e-3)
