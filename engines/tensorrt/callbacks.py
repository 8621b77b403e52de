"""Callbacks of TensorRT's compiler: a log that keeps errors, and a progress monitor.

No exception may pass through TensorRT: Ctrl-C in a callback is kept, ends the compilation, and is raised afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

SCALE = 1000  # steps of the progress of one compilation


@dataclass
class Caught:
    """The first exception that was raised in a callback, if any."""

    error: BaseException | None = None

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Keep the exception that is raised in the block, and end it without one."""
        try:
            yield
        except BaseException as error:  # KeyboardInterrupt too
            self.error = self.error or error

    def check(self) -> None:
        """Raise the exception that was kept."""
        if self.error is not None:
            raise self.error


def make_log(module: Any, caught: Caught) -> Any:
    """An ``ILogger`` whose ``errors`` are the texts of the errors since the list was last cleared."""

    class Log(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            with caught.guard():
                if int(severity) <= int(module.ILogger.ERROR):
                    self.errors.append(message)

    return Log()


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0
    within: dict[str, float] = field(default_factory=dict)  # how far the phases of the current step are

    @property
    def share(self) -> float:
        inner = max(self.within.values(), default=0.0)
        return min(1.0, (self.done + inner) / max(1, self.steps))


class Shares:
    """Overall progress of nested phases, from 0 to 1; it never goes back."""

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self.reached = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Begin a phase of ``steps`` steps, inside the phase ``parent``."""
        self._phases[name] = _Phase(parent if parent in self._phases else None, steps)

    def step(self, name: str, number: int) -> None:
        """Count a phase's step ``number``, from 0, as done."""
        phase = self._phases.get(name)
        if phase is None:
            return
        phase.done = max(phase.done, number + 1)
        phase.within.clear()
        while phase.parent is not None and phase.parent in self._phases:
            share, phase = phase.share, self._phases[phase.parent]
            phase.within[name] = share
        self.reached = max(self.reached, phase.share)

    def finish(self, name: str) -> None:
        """End a phase."""
        self._phases.pop(name, None)


def make_monitor(module: Any, advance: Callable[[int], None], caught: Caught) -> Any | None:
    """An ``IProgressMonitor`` that calls ``advance`` with amounts of `SCALE` in all; None in versions without one."""
    if not hasattr(module, "IProgressMonitor"):
        return None
    shares, told = Shares(), [0]

    class Monitor(module.IProgressMonitor):
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with caught.guard():
                shares.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with caught.guard():
                shares.step(phase_name, step)
                reached = int(SCALE * shares.reached)
                advance(reached - told[0])
                told[0] = reached
            return caught.error is None  # False ends the compilation

        def phase_finish(self, phase_name: str) -> None:
            with caught.guard():
                shares.finish(phase_name)

    return Monitor()
