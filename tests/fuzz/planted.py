"""Targets with a bug each, which the harness must find: the test of the harness itself."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from flamingo_rt.errors import DataError

from .kind import MEGABYTE, Case, Kind, Seeds, WrongAnswer
from .sandbox import OUTPUT, Sandbox

Bug = Callable[[Sandbox], object]


class Panic(BaseException):
    """Error such as a panic of a library in Rust: it is no `Exception`."""


def _raise(error: BaseException) -> Bug:
    def bug(sandbox: Sandbox) -> None:
        raise error

    return bug


def _spin(sandbox: Sandbox) -> None:
    while True:
        pass


def _grow(sandbox: Sandbox) -> list[bytearray]:
    kept = []
    while True:
        kept.append(bytearray(b"x") * MEGABYTE)


def _grow_and_refuse(sandbox: Sandbox) -> None:
    peak = bytearray(b"x") * (120 * MEGABYTE)  # above the limit, and free again before anybody looks
    del peak
    raise DataError("too large")


def _refuse_and_leave(sandbox: Sandbox) -> None:
    (sandbox.work / OUTPUT).write_text("half of it")
    raise DataError("no space left")


def _leave_beside(sandbox: Sandbox) -> None:
    (sandbox.work / OUTPUT).write_text("whole")
    (sandbox.work / f".{OUTPUT}.partial").write_text("half of it")


def _leave_temporary(sandbox: Sandbox) -> None:
    descriptor, _ = tempfile.mkstemp()
    os.close(descriptor)


def _print(text: str, descriptor: int = 1) -> Bug:
    return lambda sandbox: os.write(descriptor, text.encode())


def _connect(sandbox: Sandbox) -> None:
    socket.create_connection(sandbox.listener.getsockname()).close()


def _wait_for_answer(sandbox: Sandbox) -> None:
    socket.create_connection(sandbox.listener.getsockname()).recv(1)


def _refuse_after(line: str) -> Bug:
    return _raise(DataError(line))


# Each target, and what the harness must call its outcome.
BUGS: dict[str, tuple[Bug, str]] = {
    "raises": (_raise(ValueError("damaged")), "ValueError at tests/fuzz/planted.py:bug"),
    "panics": (_raise(Panic("index out of range")), "Panic at tests/fuzz/planted.py:bug"),
    "runs out of memory": (_raise(MemoryError()), "MemoryError at tests/fuzz/planted.py:bug"),
    "exits": (_raise(SystemExit(0)), "SystemExit at tests/fuzz/planted.py:bug"),
    "leaves the process": (lambda sandbox: os._exit(0), "exit of the process with 0"),
    "segfaults": (lambda sandbox: ctypes.string_at(0), "signal SIGSEGV"),
    "aborts": (lambda sandbox: os.kill(os.getpid(), signal.SIGABRT), "signal SIGABRT"),
    "computes for ever": (_spin, "time"),
    "waits for ever": (lambda sandbox: time.sleep(10**6), "time"),
    "takes ever more memory": (_grow, "memory"),
    "takes much memory for a moment": (_grow_and_refuse, "memory"),
    "leaves a half-written output": (_refuse_and_leave, "stray file"),
    "leaves a file beside its output": (_leave_beside, "stray file"),
    "leaves a temporary file": (_leave_temporary, "stray file"),
    "deletes a file of the user's": (lambda sandbox: (sandbox.input / "input").unlink(), "deleted file"),
    "writes into a file of the user's": (lambda sandbox: (sandbox.input / "input").write_text("x"), "changed file"),
    "prints an escape": (_print("\x1b]52;c;aGFjaw==\x07"), "control character on stdout"),
    "turns the text around": (_print("\u202etxt"), "control character on stdout"),
    "prints an escape on stderr": (_print("\x1b[2J", 2), "control character on stderr"),
    "prints a traceback": (_print("Traceback (most recent call last):\n  x\nValueError: x\n", 2),
                           "traceback on stderr ValueError: x"),
    "reads another file": (lambda sandbox: (sandbox.outside / "secret.txt").read_bytes(), "access outside"),
    "writes outside": (lambda sandbox: (sandbox.outside / "ran").write_text(""), "access outside"),
    "reads another file and refuses": (
        lambda sandbox: _raise(DataError((sandbox.outside / "secret.txt").read_text()))(sandbox), "access outside"),
    "calls a server": (_connect, "network access"),
    "waits for a server": (_wait_for_answer, "network access"),
    "answers wrongly": (_raise(WrongAnswer("not what was asked")), "WrongAnswer not what was asked"),
    "accepts what must be refused": (lambda sandbox: None, "accepted, wrongly: accepts what must be refused"),
    "refuses what must be answered": (_refuse_after("damaged"), "refused, wrongly: refuses what must be answered"),
    "gives the wrong picture": (lambda sandbox: "black", "WrongAnswer not what 'gives the wrong picture' is to give"),
    "passes on advice": (_refuse_after("run: curl | sh"), "message that holds what it must not"),
}
GOOD: dict[str, Bug] = {
    "answers": lambda sandbox: print("a red star é\U0001f600"),
    "refuses": _refuse_after("damaged: copy it again"),
    "refuses and names an escape": _refuse_after("bad name '\x1b[2J'"),  # which the command line shows as text
    "writes its output": lambda sandbox: (sandbox.work / OUTPUT).mkdir(),
    "reads what it is given": lambda sandbox: (sandbox.input / "input").read_bytes(),
    "warns": lambda sandbox: print("a warning", file=sys.stderr),
}
_REFUSED = {"accepts what must be refused": True, "refuses what must be answered": False}
TARGETS = {**{name: bug for name, (bug, _) in BUGS.items()}, **GOOD}


def _seeds(folder: Path) -> Seeds:
    return {}


def _case(name: str) -> Case:
    return Case(
        name, lambda sandbox, seeds: (sandbox.input / "input").write_text(name) and None, _REFUSED.get(name),
        (lambda answer: answer == "white") if name == "gives the wrong picture" else None,
        "curl" if name == "passes on advice" else "",
    )


def _write(rng: Random, seeds: Seeds, sandbox: Sandbox) -> None:
    (sandbox.input / "input").write_text(rng.choice(sorted(GOOD)))


def _run(sandbox: Sandbox) -> object:
    return TARGETS[(sandbox.input / "input").read_text()](sandbox)


PLANTED = Kind("planted", _seeds, _write, _run, tuple(map(_case, TARGETS)), memory=100 * MEGABYTE, seconds=1, first=10)
KINDS = {PLANTED.name: PLANTED}
