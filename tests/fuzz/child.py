"""A forked child: runs inputs one after the other, each in a cleared sandbox, and says how each ended."""

from __future__ import annotations

import faulthandler
import gc
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import click.utils

from flamingo_rt import cli
from flamingo_rt.errors import FlamingoError

from . import judge
from .judge import Outcome
from .kind import Case, Kind, Seeds, WrongAnswer
from .sandbox import Sandbox, Watch

Input = int | str  # a number of the kind's inputs, or a case of its corpus, or a folder to run again
ADDRESS_SPACE = 8 << 30  # bytes beyond those before: what keeps the machine safe where the watch is too slow
KEPT = 300_000_000  # bytes that a child may keep from its inputs before it makes way for a new one


def run_inputs(kind: Kind, inputs: Sequence[Input], seed: int, seeds: Seeds, sandbox: Sandbox, pipe: int) -> None:
    """Run the inputs and write a line of JSON to ``pipe`` before and after each; the body of a child."""
    _contain(sandbox)
    watch = Watch(sandbox.outside)
    start = memory("VmRSS")
    for number in inputs:
        _say(pipe, {"start": number, "memory": memory("VmRSS")})
        _say(pipe, {"end": number, **run_input(kind, number, seed, seeds, sandbox, watch).to_dict()})
        if memory("VmRSS") > start + KEPT:
            return


def run_input(kind: Kind, number: Input, seed: int, seeds: Seeds, sandbox: Sandbox, watch: Watch) -> Outcome:
    """Make one input, run it and judge what came of it. An exception of the harness itself is a finding too."""
    sandbox.clear()
    os.chdir(sandbox.work)
    try:
        write_input(kind, number, seed, seeds, sandbox)
    except Exception as error:
        outcome = judge.of_exception(error, commands=False)
        return Outcome(judge.FINDING, f"harness: {outcome.what}", outcome.detail)
    case = _case(kind, number)
    before = sandbox.contents()
    watch.touched(), sandbox.called()  # forget the events of making the input
    resident, started = _reset_peak(), time.process_time()
    _limit_time(kind.seconds)
    with _Captured(sandbox) as printed:
        outcome = _run(kind, case, sandbox)
    seconds, peak = time.process_time() - started, memory("VmHWM") - resident
    outcome = judge.of_output(outcome, *printed.texts)
    outcome = judge.of_files(outcome, before, sandbox.contents())
    outcome = judge.of_traps(outcome, watch.touched(), sandbox.called())
    if outcome.verdict != judge.FINDING and peak > kind.memory:
        outcome = Outcome(judge.FINDING, "memory", f"{peak / 1e6:.0f} MB; {outcome.verdict} {outcome.detail}")
    if case is not None:
        outcome = judge.of_case(outcome, case)
    return Outcome(outcome.verdict, outcome.what, outcome.detail, peak, seconds)


def write_input(kind: Kind, number: Input, seed: int, seeds: Seeds, sandbox: Sandbox) -> None:
    """Put an input into a cleared sandbox."""
    case = _case(kind, number)
    if case is not None:
        case.write(sandbox, seeds)
    else:
        kind.write(Random(f"{seed}/{kind.name}/{number}"), seeds, sandbox)


def _case(kind: Kind, number: Input) -> Case | None:
    return next((case for case in kind.cases if case.name == number), None)


def _run(kind: Kind, case: Case | None, sandbox: Sandbox) -> Outcome:
    try:
        answer = kind.run(sandbox)
        if case is not None and case.check is not None and not case.check(answer):
            raise WrongAnswer(f"not what {case.name!r} is to give")
        return Outcome(judge.ACCEPTED)
    except BaseException as error:  # a panic of a library in Rust is no Exception
        outcome = judge.of_exception(error, kind.commands)
        if not kind.commands and isinstance(error, FlamingoError):
            _print_as_command(error)
        del error
        gc.collect()
        return outcome


def _print_as_command(error: FlamingoError) -> None:
    """Print a refusal as the command line does, so that what a terminal would get is judged."""

    def raising(**_: object) -> None:
        raise error

    kept, cli.cli.main = cli.cli.main, raising
    try:
        cli.main()
    except SystemExit:
        pass
    finally:
        cli.cli.main = kept


class _Captured:
    """Context that captures stdout and stderr as `texts`, also what libraries print without Python."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._files = [sandbox.top / name for name in ("stdout", "stderr")]
        self._kept = sys.stdout, sys.stderr
        self.texts = ("", "")

    def __enter__(self) -> _Captured:
        for descriptor, file in enumerate(self._files, 1):
            opened = os.open(file, os.O_WRONLY | os.O_TRUNC | os.O_APPEND)
            os.dup2(opened, descriptor)
            os.close(opened)
        sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "w", closefd=False)) for number in (1, 2))
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):  # closed by what was run
                continue
        sys.stdout, sys.stderr = self._kept
        self.texts = tuple(
            file.read_bytes()[:1_000_000].decode("utf-8", "backslashreplace") for file in self._files
        )


def _contain(sandbox: Sandbox) -> None:
    """Give this process limits, an environment and outputs of its own."""
    os.environ.update(sandbox.environment())
    tempfile.tempdir = None  # found again, inside
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    bytes_now = memory("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (bytes_now + ADDRESS_SPACE,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30,) * 2)
    for name in ("stdout", "stderr", "stack"):
        (sandbox.top / name).write_bytes(b"")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    stack = (sandbox.top / "stack").open("w")
    faulthandler.enable(stack)
    faulthandler.register(signal.SIGUSR1, stack)
    click.utils.should_strip_ansi = lambda *_, **__: False  # a terminal would get the codes, a file does not


def _limit_time(seconds: int) -> None:
    """Let the system end this process (SIGXCPU) when one input takes longer."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _reset_peak() -> int:
    """Forget the peak of memory; returns what is resident now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(field: str, process: int | str = "self") -> int:
    """A figure of a process' memory, in bytes; 0 when it is gone."""
    try:
        with open(f"/proc/{process}/status") as status:
            line = next((line for line in status if line.startswith(f"{field}:")), None)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(line.split()[1]) * 1024 if line else 0


def _say(pipe: int, message: dict) -> None:
    os.write(pipe, json.dumps(message).encode() + b"\n")
