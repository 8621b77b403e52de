"""Commands in processes of their own: how long they take, and how much memory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flamingo_rt.child_process import child_environment, python_command

ROOT = Path(__file__).parents[1]  # the package ``benchmarks`` is imported from here
TAIL = 3000  # characters of output that a failure is explained with


@dataclass(frozen=True)
class Finished:
    """``peak_bytes``: largest resident memory as the kernel reports it, mapped files included. ``first_output``:
    seconds from the start to the first character of output, None without any."""

    command: tuple[str, ...]
    status: int
    seconds: float
    peak_bytes: int
    output: str
    first_output: float | None

    @property
    def last_line(self) -> str:
        lines = self.output.strip().splitlines()
        return lines[-1] if lines else ""


def run(
    command: Sequence[str], environment: Mapping[str, str] | None = None, echo: bool = False, quiet: bool = False,
    together: bool = False, limit: float | None = None, on_line: Callable[[str], None] = lambda line: None,
) -> Finished:
    """Run a command to its end, or kill it and its children after ``limit`` seconds.

    The child gets `child_environment` with the checkout on its path, so that it finds ``benchmarks`` from any folder,
    and ``environment`` added. ``echo`` shows output as it comes, but no JSON; ``on_line`` is called with each line.
    Standard error is inherited; with ``quiet`` it is dropped, with ``together`` it is part of the output.
    """
    errors = subprocess.STDOUT if together else subprocess.DEVNULL if quiet else None
    start = time.perf_counter()
    process = subprocess.Popen(
        list(command), stdout=subprocess.PIPE, stderr=errors, text=True,
        env=child_environment(_with_checkout(environment or {})), start_new_session=limit is not None,
    )
    pieces: list[str] = []
    first: list[float] = []
    reader = threading.Thread(target=_read, args=(process, start, pieces, first, echo, on_line))
    reader.start()
    timer = threading.Timer(limit, _kill_group, (process,)) if limit is not None else None
    if timer is not None:
        timer.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        raise
    finally:
        if timer is not None:
            timer.cancel()
    seconds = time.perf_counter() - start
    reader.join()
    unit = 1 if sys.platform == "darwin" else 1024
    return Finished(tuple(command), os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss * unit,
                    "".join(pieces).strip(), first[0] if first else None)


def _with_checkout(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` with the checkout first on ``PYTHONPATH``."""
    before = environment.get("PYTHONPATH", child_environment().get("PYTHONPATH"))
    return {**environment, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [before])])}


def _kill_group(process: subprocess.Popen[str]) -> None:
    """A process and its children, which would keep its output open."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _read(
    process: subprocess.Popen, start: float, pieces: list[str], first: list[float], echo: bool,
    on_line: Callable[[str], None],
) -> None:
    character = process.stdout.read(1)
    if character:
        first.append(time.perf_counter() - start)
        pieces.append(character)
    for line in process.stdout:
        pieces.append(line)
        whole = "".join(pieces[:2]) if len(pieces) == 2 else line
        on_line(whole.rstrip())
        if echo and not whole.startswith("{"):
            print("   ", whole.rstrip(), flush=True)


def folder_bytes(path: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def toolkit(*arguments: str) -> str:
    """Run a command of flamingo-rt in a process; gives what it printed. Ends the program when it fails."""
    return module("flamingo_rt", *arguments)


def module(name: str, *arguments: str) -> str:
    """Run a module as a script in a process; gives what it printed. Ends the program when it fails."""
    finished = run(python_command(name, *arguments), together=True)
    if finished.status != 0:
        sys.exit(f"python -m {name} {' '.join(arguments)} failed: {finished.output[-2000:]}")
    return finished.output
