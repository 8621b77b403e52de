"""The state of a board that a measurement depends on: power mode, clocks, temperatures, memory, swap.

A value that cannot be read is named, and nothing else is lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.jetson_steps.readings import Unreadable, read_number, read_text
from benchmarks.processes import run

COMMAND_SECONDS = 20.0
# The board's own programs; --show and -q change nothing. Without root, jetson_clocks refuses.
COMMANDS = {"power_mode": ("nvpmodel", "-q"), "jetson_clocks": ("jetson_clocks", "--show")}
NAMES = {"board": "proc/device-tree/model", "l4t": "etc/nv_tegra_release", "kernel": "proc/sys/kernel/osrelease"}
GPU_CLOCKS = re.compile(r"gpu|ga10b|gv11b|gp10b|gb10b", re.IGNORECASE)
COLDEST, HOTTEST = -30.0, 150.0  # degrees; a zone that is switched off reads -256


def about_board(root: Path) -> dict[str, Any]:
    """All that is known about the board now, with a list of ``problems``: what could not be read, and why."""
    problems: list[str] = []
    found: dict[str, Any] = {}
    for name, path in NAMES.items():
        try:
            found[name] = next(iter(read_text(root / path).splitlines()), "")
        except Unreadable as error:
            problems.append(str(error))
    for name, command in COMMANDS.items():
        told, problem = told_by(command)
        if told is not None:
            found[name] = told
        else:
            problems.append(problem)
    clocks, more = _clocks(root)
    temperatures, others = _temperatures(root)
    memory, rest = _memory(root)
    return {**found, "clocks": clocks, "temperatures": temperatures, **memory,
            "problems": [*problems, *more, *others, *rest]}


def told_by(command: Sequence[str]) -> tuple[str | None, str]:
    """Output of one of the board's programs, or None and the reason."""
    line = " ".join(command)
    try:
        finished = run(command, together=True, limit=COMMAND_SECONDS)
    except OSError as error:
        return None, f"{line}: {error.strerror or error}"
    if finished.status:
        said = finished.last_line[:200] or "it told nothing"
        return None, f"{line}: status {finished.status}: {said}"
    return finished.output, ""


def power_mode(told: str) -> str | None:
    """The name of the power mode in what ``nvpmodel -q`` told."""
    found = re.search(r"NV Power Mode\s*:\s*(\S+)", told)
    return found[1] if found else None


def _clocks(root: Path) -> tuple[dict[str, Any], list[str]]:
    """Clocks of cores and GPU in MHz: now, lowest and highest that are allowed; ``held`` where all three are one."""
    places: dict[str, tuple[Path, tuple[str, str, str], float]] = {}
    for folder in sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq")):
        places[folder.parent.name] = (folder, ("scaling_cur_freq", "scaling_min_freq", "scaling_max_freq"), 1e-3)
    for folder in sorted(root.glob("sys/class/devfreq/*")):
        if GPU_CLOCKS.search(folder.name):
            places[folder.name] = (folder, ("cur_freq", "min_freq", "max_freq"), 1e-6)
    found, problems = {}, []
    for name, (folder, files, scale) in places.items():
        try:
            now, lowest, highest = (read_number(folder / file, 0.0, 1e5, scale) for file in files)
        except Unreadable as error:
            problems.append(str(error))
            continue
        found[name] = {"now": now, "lowest": lowest, "highest": highest, "held": lowest == highest}
    if not places:
        problems.append(f"there are no clocks under {root / 'sys'}")
    return found, problems


def _temperatures(root: Path) -> tuple[dict[str, float], list[str]]:
    """Degrees Celsius by thermal zone."""
    zones, found, problems = sorted(root.glob("sys/class/thermal/thermal_zone*")), {}, []
    for zone in zones:
        try:
            found[read_text(zone / "type")] = read_number(zone / "temp", COLDEST, HOTTEST, 1e-3)
        except Unreadable as error:
            problems.append(str(error))
    if not zones:
        problems.append(f"there are no thermal zones under {root / 'sys/class/thermal'}")
    return found, problems


def _memory(root: Path) -> tuple[dict[str, Any], list[str]]:
    """Bytes of memory, total and available, and of each swap area; zram is memory too."""
    found: dict[str, Any] = {}
    problems: list[str] = []
    try:
        lines = dict(_sizes(read_text(root / "proc/meminfo")))
        found["memory"] = {name: lines[key] for name, key in (("total", "MemTotal"), ("available", "MemAvailable"))}
    except (Unreadable, KeyError) as error:
        problems.append(f"memory is not known: {error}")
    try:
        rows = [line.split() for line in read_text(root / "proc/swaps").splitlines()[1:]]
        found["swap"] = [{"area": row[0], "bytes": int(row[2]) * 1024, "used": int(row[3]) * 1024} for row in rows]
    except (Unreadable, ValueError, IndexError) as error:
        problems.append(f"swap is not known: {error}")
    return found, problems


def _sizes(text: str) -> Iterator[tuple[str, int]]:
    """Names and bytes in the lines of meminfo."""
    for line in text.splitlines():
        found = re.fullmatch(r"(\w+):\s+(\d+) kB", line.strip())
        if found:
            yield found[1], int(found[2]) * 1024
