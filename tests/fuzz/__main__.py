"""``python -m tests.fuzz``: run the fuzzer for some minutes, for the first inputs of each kind, or for one input.

    python -m tests.fuzz --minutes 30 --keep fuzz-findings     # all kinds
    python -m tests.fuzz --first                                # what the test suite runs
    python -m tests.fuzz --kinds pictures --input 17            # one input again
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before numpy, torch and tokenizers are imported: a process that forks must have no threads.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
_ROOT = Path(__file__).parents[2]
# setup.cfg puts these on pytest's path; kinds are made with them.
sys.path[:0] = [str(_ROOT / part) for part in (".", "tests", "tests/importing")]

import argparse  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from contextlib import suppress  # noqa: E402

from tests.fuzz.child import Input, write_input  # noqa: E402
from tests.fuzz.judge import FINDING  # noqa: E402
from tests.fuzz.kind import Kind  # noqa: E402
from tests.fuzz.report import Report  # noqa: E402
from tests.fuzz.runner import BATCH, Runner  # noqa: E402

SHARED_MEMORY = Path("/dev/shm")  # files there are made and deleted in a tenth of the time
CASES = 8  # cases of the corpus that a child gets at once: some take seconds, or end the child


def main() -> int:
    """Parse the arguments and run; returns the exit code, 1 with findings."""
    arguments = _parsed()
    kinds = _kinds(arguments)
    report = Report(arguments.seed, arguments.keep)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=arguments.work) as top:
        runner = Runner(Path(top).resolve(), arguments.jobs, arguments.seed)
        for finished in runner.run(_work(arguments, kinds, started, report)):
            report.add(finished)
            if finished.outcome.verdict == FINDING and arguments.keep is not None:
                _keep(report, runner, finished)
            if arguments.input is not None:
                print(json.dumps(finished.outcome.to_dict(), indent=1).replace("\\n", "\n"))
        os.chdir(_ROOT)
    print(report.table(time.monotonic() - started))
    if report.found:
        print(report.findings())
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report.to_dict(), indent=1))
    return int(bool(report.found))


def _kinds(arguments: argparse.Namespace) -> list[Kind]:
    """The kinds asked for; imports what they need, before anything is forked."""
    known: dict[str, Kind] = importlib.import_module(arguments.kinds_from).KINDS
    unknown = sorted(set(arguments.kinds or ()) - set(known))
    if unknown:
        print(f"unknown kinds {', '.join(unknown)}; known: {', '.join(known)}", file=sys.stderr)
        sys.exit(2)
    return [known[name] for name in arguments.kinds or known]


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--kinds", type=lambda text: text.split(","), metavar="A,B",
                        help="some of the kinds; default: all")
    parser.add_argument("--kinds-from", default="tests.fuzz.kinds", metavar="MODULE", help="the module that lists them")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long")
    parser.add_argument("--first", action="store_true",
                        help="the corpus and the first inputs of each kind, as the test suite")
    parser.add_argument("--inputs", type=int, help="so many inputs of each kind, and the corpus")
    parser.add_argument("--input", help="one input, by its number, or by its name in the corpus")
    parser.add_argument("--seed", type=int, default=0, help="of what is random")
    parser.add_argument("--from", dest="start", type=int, default=0, help="number of the first input")
    parser.add_argument("--jobs", type=int, default=2, help="children at a time")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for the inputs of findings")
    shared = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    parser.add_argument("--work", type=Path, metavar="FOLDER", default=shared, help="for the sandboxes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="counts and findings as JSON")
    arguments = parser.parse_args()
    if arguments.keep is not None:
        arguments.keep = arguments.keep.resolve()
    return arguments


def _work(
    arguments: argparse.Namespace, kinds: list[Kind], started: float, report: Report
) -> Iterator[tuple[Kind, list[Input]]]:
    """Batches of inputs, the corpus first; then of the kind that had the least time for its share."""
    if arguments.input is not None:
        number = int(arguments.input) if arguments.input.isdecimal() else arguments.input
        for kind in kinds:
            yield kind, [number]
        return
    for kind in kinds:
        if kind.cases and not arguments.start:
            names = [case.name for case in kind.cases]
            for place in range(0, len(names), CASES):
                yield kind, names[place : place + CASES]
    if arguments.first or arguments.inputs:
        for kind in kinds:
            numbers = list(range(arguments.start, arguments.start + (arguments.inputs or kind.first)))
            for place in range(0, len(numbers), BATCH):
                yield kind, numbers[place : place + BATCH]
        return
    begun = {kind.name: arguments.start for kind in kinds}
    while time.monotonic() - started < 60 * arguments.minutes:
        kind = min(kinds, key=lambda kind: (_spent(report, kind) / kind.share, begun[kind.name]))
        yield kind, list(range(begun[kind.name], begun[kind.name] + BATCH))
        begun[kind.name] += BATCH


def _spent(report: Report, kind: Kind) -> float:
    tally = report.tallies.get(kind.name)
    return tally.seconds if tally else 0.0


def _keep(report: Report, runner: Runner, finished) -> None:
    """Make the input of a finding again, in a sandbox that no child uses, and save it."""
    sandbox = runner.spare
    sandbox.clear()
    try:
        with suppress(Exception):  # making the input may be what failed: that is the finding
            write_input(finished.kind, finished.number, report.seed, runner.seeds(finished.kind), sandbox)
    finally:
        report.save(finished, sandbox.input)
        sandbox.clear()


if __name__ == "__main__":
    sys.exit(main())
