"""The parent: forks children that run inputs, watches their time and memory, and collects the outcomes.

It has imported everything that the children need and started no thread, so a child is there in milliseconds and can
start threads of its own.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import selectors
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import judge
from .child import Input, memory, run_inputs
from .judge import Outcome
from .kind import Kind, Seeds
from .sandbox import Sandbox

BATCH = 50  # inputs that a child is given at once
WATCH_EVERY = 0.02  # seconds between looks at the memory of the children
WAITING = 4  # times the processor time that an input may take by the clock, for machines with other work


@dataclass(frozen=True)
class Finished:
    """An input and what came of it."""

    kind: Kind
    number: Input
    outcome: Outcome


@dataclass
class _Child:
    kind: Kind
    left: list[Input]  # not yet begun
    process: int
    pipe: int
    sandbox: Sandbox
    number: Input | None = None  # the one that runs
    began: float = field(default_factory=time.monotonic)
    memory: int = 0  # before it
    unread: bytes = b""
    ended_for: str = ""  # why this parent ended it


class Runner:
    """Runs inputs in up to ``jobs`` children at a time, in folders below ``top``."""

    def __init__(self, top: Path, jobs: int, seed: int = 0) -> None:
        self._top, self._seed = top, seed
        gc.collect()
        gc.freeze()  # children then collect their own objects alone, in a hundredth of the time
        self._sandboxes = [Sandbox.make(top / f"job{job}") for job in range(jobs)]
        self._spare: Sandbox | None = None
        self._seeds: dict[str, Seeds] = {}

    @property
    def spare(self) -> Sandbox:
        """A sandbox that no child uses."""
        if self._spare is None:
            self._spare = Sandbox.make(self._top / "spare")
        return self._spare

    def seeds(self, kind: Kind) -> Seeds:
        """The valid files of a kind, made in a process of their own, so that no thread is started in this one."""
        if kind.name not in self._seeds:
            folder = self._top / "seeds" / kind.name
            folder.mkdir(parents=True)
            kept = self._top / "seeds" / f"{kind.name}.pickle"
            process = os.fork()
            if not process:
                _leave_after(lambda: kept.write_bytes(pickle.dumps(dict(kind.seeds(folder)))))
            _, status = os.waitpid(process, 0)
            if status:
                raise RuntimeError(f"the seeds of {kind.name} could not be made, see above")
            self._seeds[kind.name] = pickle.loads(kept.read_bytes())
            shutil.rmtree(folder)
        return self._seeds[kind.name]

    def run(self, work: Iterable[tuple[Kind, list[Input]]]) -> Iterator[Finished]:
        """Run batches of inputs; yields each as it ends. What a dying child leaves is given to another."""
        waiting, batches = [], iter(work)
        free, children = list(self._sandboxes), selectors.DefaultSelector()
        while True:
            while free and (batch := waiting.pop() if waiting else next(batches, None)) is not None:
                child = self._fork(*batch, free.pop())
                children.register(child.pipe, selectors.EVENT_READ, child)
            if not children.get_map():
                return
            for key, _ in children.select(WATCH_EVERY):
                child = key.data
                received = os.read(child.pipe, 1 << 16)
                yield from _messages(child, received)
                if not received:
                    children.unregister(child.pipe)
                    ended = _ended(child)
                    if ended is not None:
                        yield ended
                    if child.left:
                        waiting.append((child.kind, child.left))
                    free.append(child.sandbox)
            for key in list(children.get_map().values()):
                _watch(key.data)

    def _fork(self, kind: Kind, inputs: list[Input], sandbox: Sandbox) -> _Child:
        seeds = self.seeds(kind)
        reading, writing = os.pipe()
        process = os.fork()
        if not process:
            os.close(reading)
            os.setsid()  # so that what it starts ends with it
            _leave_after(lambda: run_inputs(kind, inputs, self._seed, seeds, sandbox, writing))
        os.close(writing)
        return _Child(kind, list(inputs), process, reading, sandbox)


def _leave_after(body: Any) -> None:
    """Run ``body`` in a forked child and end it, without the parent's exit handlers."""
    status = 1
    try:
        body()
        status = 0
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        sys.__stderr__.flush()
    finally:
        os._exit(status)


def _messages(child: _Child, received: bytes) -> Iterator[Finished]:
    *lines, child.unread = (child.unread + received).split(b"\n")
    for message in map(json.loads, lines):
        if "start" in message:
            child.number, child.memory = message["start"], message["memory"]
            child.left.remove(child.number)
            child.began = time.monotonic()
        else:
            number, child.number = message.pop("end"), None
            yield Finished(child.kind, number, Outcome(**message))


def _watch(child: _Child) -> None:
    """End a child whose input takes too long or too much; it says first where it is."""
    if child.number is None or child.ended_for:
        return
    taken = memory("VmRSS", child.process) - child.memory
    if taken > 1.5 * child.kind.memory:  # it looks itself at the peak; this is for one that does not come to that
        child.ended_for = f"memory: {taken / 1e6:.0f} MB and growing"
    elif time.monotonic() - child.began > WAITING * child.kind.seconds:
        child.ended_for = f"time: {WAITING * child.kind.seconds} s by the clock"
    if child.ended_for:
        os.kill(child.process, signal.SIGUSR1)
        time.sleep(0.05)
        os.killpg(child.process, signal.SIGKILL)


def _ended(child: _Child) -> Finished | None:
    """Collect a child that has closed its pipe: why it died is a finding of the input that it ran, if any."""
    os.close(child.pipe)
    _, status = os.waitpid(child.process, 0)
    if child.number is None:
        if status and not child.ended_for:
            raise RuntimeError(f"a child of {child.kind.name} died between inputs (status {status}), see above")
        return None
    stack = (child.sandbox.top / "stack").read_text(errors="replace")
    printed = (child.sandbox.top / "stderr").read_text(errors="replace")
    if child.ended_for:
        what = child.ended_for.split(":")[0]
    elif os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        what = "time"
    elif os.WIFSIGNALED(status):
        what = f"signal {signal.Signals(os.WTERMSIG(status)).name}"
    else:
        what = f"exit of the process with {os.waitstatus_to_exitcode(status)}"
    if child.sandbox.called():
        what = "network access"
    detail = f"{child.ended_for}\n{stack[-3000:]}\n{printed[-2000:]}"
    return Finished(child.kind, child.number, Outcome(judge.FINDING, what, detail))
