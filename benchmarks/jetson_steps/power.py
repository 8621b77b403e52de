"""Power of a board by its own sensors: Texas Instruments' INA chips, as the kernel's hwmon shows them.

    sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in1_label     VDD_IN
                                                    in1_input     millivolts
                                                    curr1_input   milliamperes
                                                    power1_input  microwatts, of some drivers instead of the two
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.jetson_steps.readings import Unreadable, read_number, read_text

CHIPS = "sys/bus/i2c/drivers/ina*/*/hwmon/hwmon*"
# Rails that carry everything that the board takes, by its maker's names; without one there is no figure of the whole.
WHOLE = ("VDD_IN", "VIN", "POM_5V_IN")
MOST_VOLTS, MOST_AMPERES, MOST_WATTS = 60.0, 40.0, 400.0  # a Thor takes 130 W
INTERVAL = 0.1  # seconds between two samples


@dataclass(frozen=True)
class Rail:
    """A supply rail: its ``label`` and the files that its power is read from, with the scale of each to volts, amperes
    or watts and the largest value that makes sense."""

    label: str
    files: tuple[tuple[Path, float, float], ...]

    def watts(self) -> float:
        """Its power now. Raises `Unreadable`."""
        power = 1.0
        for file, scale, most in self.files:
            power *= read_number(file, 0.0, most, scale)
        return power


def find_rails(root: Path) -> tuple[list[Rail], list[str]]:
    """The rails whose sensors can be read now, and what is wrong with the others."""
    rails: list[Rail] = []
    problems: list[str] = []
    chips = sorted(root.glob(CHIPS))
    for chip in chips:
        for number in _channels(chip):
            try:
                rail = _rail(chip, number)
                if rail is None:
                    continue
                watts = rail.watts()
                if rail.label in WHOLE and watts == 0.0:
                    raise Unreadable(f"{chip}: {rail.label} reads 0 W, though the board runs")
            except Unreadable as error:
                problems.append(str(error))
                continue
            if rail.label in {other.label for other in rails}:
                problems.append(f"{chip}: there is another {rail.label}, which is taken")
            else:
                rails.append(rail)
    if not chips:
        problems.append(f"there are no power sensors under {root / CHIPS}")
    return rails, problems


def _channels(chip: Path) -> list[str]:
    """The numbers of a chip's channels, in order."""
    matches = (re.match(r"(?:in|power)(\d+)_", file.name) for file in chip.iterdir())
    return sorted({found[1] for found in matches if found}, key=int)


def _rail(chip: Path, number: str) -> Rail | None:
    """The rail of a channel; None for a channel that measures no power, such as the sum of shunt voltages."""
    volts, amperes, power = (chip / f"{kind}{number}_input" for kind in ("in", "curr", "power"))
    label = next((file for kind in ("in", "power") if (file := chip / f"{kind}{number}_label").exists()), None)
    name = read_text(label) if label else f"{chip.name} channel {number}"
    if volts.exists() and amperes.exists():
        return Rail(name, ((volts, 1e-3, MOST_VOLTS), (amperes, 1e-3, MOST_AMPERES)))
    return Rail(name, ((power, 1e-6, MOST_WATTS),)) if power.exists() else None


@dataclass
class PowerLog:
    """Samples of rails, taken in a thread while the log is entered. Times are `time.monotonic`'s, which all processes
    of a machine share."""

    rails: Sequence[Rail]
    clock: Callable[[], float] = time.monotonic
    samples: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    failures: dict[str, tuple[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> PowerLog:
        if self.rails:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self.rails:
            self._thread.join()

    def take(self) -> None:
        """Sample every rail once; one that cannot be read is counted."""
        for rail in self.rails:
            try:
                watts = rail.watts()
                self.samples.setdefault(rail.label, []).append((self.clock(), watts))
            except Unreadable as error:
                self.failures[rail.label] = (self.failures.get(rail.label, (0, ""))[0] + 1, str(error))

    def _run(self) -> None:
        while not self._ended.is_set():
            self.take()
            self._ended.wait(INTERVAL)

    def joules(self, start: float, end: float) -> dict[str, float]:
        """Energy of each rail between two times; without the rails that have no sample between them."""
        found = {}
        for label, samples in self.samples.items():
            energy = integral(list(samples), start, end)
            if energy is not None:
                found[label] = energy
        return found

    def summary(self, start: float, end: float) -> dict[str, Any]:
        """Mean watts of each rail between two times, and the rails that could not be read."""
        spent = self.joules(start, end)
        found: dict[str, Any] = {"watts": {label: round(energy / (end - start), 3) for label, energy in spent.items()}}
        if self.failures:
            found["unread"] = {label: f"{count} times: {why}" for label, (count, why) in self.failures.items()}
        return found


def whole_board(labels: Sequence[str]) -> str | None:
    """The rail that carries everything; None where there is none."""
    return next((label for label in WHOLE if label in labels), None)


def integral(samples: Sequence[tuple[float, float]], start: float, end: float) -> float | None:
    """The area under samples (time, value) between two times: straight lines between samples, and the first and the
    last value beyond them. None where no sample is between the two times."""
    inside = [(time, value) for time, value in samples if start <= time <= end]
    if not inside or end <= start:
        return None
    before = max((sample for sample in samples if sample[0] < start), default=(start, inside[0][1]))
    after = min((sample for sample in samples if sample[0] > end), default=(end, inside[-1][1]))
    line = [(start, _at(before, inside[0], start)), *inside, (end, _at(inside[-1], after, end))]
    return sum((later[0] - first[0]) * (first[1] + later[1]) / 2 for first, later in pairwise(line))


def _at(first: tuple[float, float], second: tuple[float, float], time: float) -> float:
    """The value at a time on the line through two samples."""
    if second[0] <= first[0]:
        return second[1]
    return first[1] + (second[1] - first[1]) * (time - first[0]) / (second[0] - first[0])
