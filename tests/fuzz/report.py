"""The report on a run of the fuzzer: a table by kind, each finding once, and a folder for each."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from flamingo_rt.printable import printable

from . import judge
from .judge import Outcome
from .kind import Kind
from .runner import Finished

KEPT_EACH = 3  # inputs that are kept of one finding


@dataclass
class Tally:
    """Counts of the outcomes of one kind's inputs."""

    accepted: int = 0
    refused: int = 0
    findings: int = 0
    memory: int = 0  # bytes, the most of an input
    seconds: float = 0.0  # processor time of all inputs
    longest: float = 0.0

    @property
    def inputs(self) -> int:
        return self.accepted + self.refused + self.findings


@dataclass
class Report:
    """Collects outcomes; ``keep`` is a folder for the inputs of findings."""

    seed: int
    keep: Path | None = None
    tallies: dict[str, Tally] = field(default_factory=dict)
    found: dict[tuple[str, str], list[Finished]] = field(default_factory=dict)
    cases: dict[tuple[str, str], Outcome] = field(default_factory=dict)
    counts: Counter = field(default_factory=Counter)

    def add(self, finished: Finished) -> None:
        """Count an outcome; the first few inputs of each finding are remembered."""
        outcome, tally = finished.outcome, self.tallies.setdefault(finished.kind.name, Tally())
        tally.memory, tally.longest = max(tally.memory, outcome.memory), max(tally.longest, outcome.seconds)
        tally.seconds += outcome.seconds
        if isinstance(finished.number, str):
            self.cases[finished.kind.name, finished.number] = outcome
        if outcome.verdict == judge.ACCEPTED:
            tally.accepted += 1
        elif outcome.verdict == judge.REFUSED:
            tally.refused += 1
        else:
            tally.findings += 1
            key = finished.kind.name, outcome.what
            self.counts[key] += 1
            if len(self.found.setdefault(key, [])) < KEPT_EACH:
                self.found[key].append(finished)

    def command(self, finished: Finished) -> str:
        """Command that runs the input again."""
        return reproducing(finished.kind, finished.number, self.seed)

    def table(self, wall: float) -> str:
        """One line for each kind; ``wall`` is how long all of it took, in seconds."""
        head = ("kind", "inputs", "refused", "accepted", "findings", "inputs/s", "longest", "memory")
        rows = [
            (name, tally.inputs, tally.refused, tally.accepted, tally.findings,
             f"{tally.inputs / max(tally.seconds, 1e-9):.0f}", f"{tally.longest:.1f} s", f"{tally.memory / 1e6:.0f} MB")
            for name, tally in self.tallies.items()
        ]
        total = sum(tally.inputs for tally in self.tallies.values())
        lines = [f"{name:<16}{''.join(f'{cell!s:>10}' for cell in cells)}" for name, *cells in (head, *rows)]
        return "\n".join([*lines, f"{total} inputs in {wall:.0f} s, {len(self.found)} distinct findings"])

    def findings(self) -> str:
        """Each finding once, the command that runs it again, and where the details are kept."""
        lines = []
        for (kind, what), examples in self.found.items():
            lines.append(f"{kind}: {printable(what)}: {self.counts[kind, what]} times, such as")
            lines += [f"    {self.command(finished)}" for finished in examples]
            lines.append("    " + printable(examples[0].outcome.detail.strip()[-300:], lines=True).replace("\n",
                                                                                                           "\n    "))
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """Report as JSON: by kind, the counts, the outcome of each case of the corpus, and the findings."""
        return {
            name: {
                "inputs": tally.inputs, "accepted": tally.accepted, "refused": tally.refused, "seconds": tally.seconds,
                "memory": tally.memory,
                "cases": {case: outcome.to_dict() for (kind, case), outcome in self.cases.items() if kind == name},
                "findings": [
                    {"number": finished.number, "command": self.command(finished), **finished.outcome.to_dict()}
                    for (kind, _), examples in self.found.items() if kind == name for finished in examples
                ],
            }
            for name, tally in self.tallies.items()
        }

    def save(self, finished: Finished, source: Path) -> None:
        """Keep a finding: its input, and in ``finding.json`` what came of it and the command that runs it again."""
        assert self.keep is not None
        name = re.sub(r"\W+", "-", f"{finished.kind.name} {finished.outcome.what} {finished.number}")[:120].strip("-")
        folder = self.keep / name
        if folder.exists():
            return
        shutil.copytree(source, folder / "input", symlinks=True, ignore=_special)
        about = {"command": self.command(finished), **finished.outcome.to_dict()}
        (folder / "finding.json").write_text(json.dumps(about, indent=1) + "\n")


def reproducing(kind: Kind, number: int | str, seed: int) -> str:
    """The command that runs one input again."""
    return shlex.join([
        ".venv/bin/python", "-m", "tests.fuzz", "--kinds", kind.name, "--input", str(number),
        *(["--seed", str(seed)] if seed else []),
    ])


def _special(folder: str, names: list[str]) -> set[str]:
    """Pipes, which cannot be copied."""
    return {name for name in names if (Path(folder) / name).is_fifo()}
