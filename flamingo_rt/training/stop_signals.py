"""Signals that ask a run to stop: it finishes the step it is in, saves its state, and ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


class RunStopped(Exception):
    """A run was asked to stop by signal ``number``; its state after ``step`` is in ``state``, before the first step
    there is none."""

    def __init__(self, number: int, step: int, state: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}, with its state in {state}")
        self.number, self.step, self.state = number, step, state


class StopSignals:
    """Within this context the first of the signals ``numbers`` is noted in ``number`` (0 before it) instead of ending
    the process, and ``noted`` is called with it. A second SIGINT raises `KeyboardInterrupt`.

    A second SIGTERM does nothing: a scheduler that sends it to every process sends it to torchrun too, which passes it
    on. A signal that this process ignores, as one that a shell started in the background ignores SIGINT, stays ignored.
    Signals are heeded in the main thread alone, where Python handles them.
    """

    def __init__(self, numbers: Sequence[int] = (), noted: Callable[[int], None] = lambda number: None) -> None:
        self.number = 0
        self._numbers, self._noted = numbers, noted
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            heeded = [number for number in self._numbers if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
                 ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number = number
            self._noted(number)
        elif number == signal.SIGINT:
            signal.default_int_handler(number, frame)


def keep_from_stopping() -> None:
    """Let a process that draws data live through the signals that ask its run to stop: the step that is finished may
    need it. A terminal, a scheduler and torchrun send them to all processes of a group.

    A second SIGINT ends it, as it ends the run, and so does SIGTERM from its parent, by which torch ends it.
    """
    signal.signal(signal.SIGINT, _ignore_once)
    if hasattr(signal, "sigwaitinfo"):  # Linux
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # before other threads start: they inherit it
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _ignore_once(number: int, frame: FrameType | None) -> None:
    # With status 0: torch raises an error in the training process for any other, and for an end by a signal.
    signal.signal(number, lambda number, frame: os._exit(0))


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
