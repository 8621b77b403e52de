"""Everything that needs an NVIDIA GPU, in ten minutes: the product's own commands, and the same prompts in PyTorch.

    python -m benchmarks.gpu_run --work FOLDER             # on the GPU's machine; FOLDER keeps bundles and engines
    python -m benchmarks.gpu_run --work FOLDER --prepare   # before, anywhere: bundles of 5 GB; takes minutes
    python -m benchmarks.gpu_run --smoke                   # the same steps, small, on this machine's CPU

Installed libraries are used, none is fetched: ``pip install -e .[export,train]`` with a CUDA build of PyTorch, and
``.[cuda]``, ``.[tensorrt]`` or ``.[tensorrt-rtx]`` for the backends (for clocks and power nvidia-ml-py). open_flamingo
is in this environment or, with ``--peer-python``, in its own: ``benchmarks/peers/make.sh``, there too with CUDA.

Each step is a process: ``flamingo-rt doctor``; ``export``, ``build`` and ``bench`` of a model at the size of
OpenFlamingo-3B with random weights; ``verify`` of small models; the prompts of ``bench`` in open_flamingo and in our
own PyTorch model, eager and compiled. The first backend that works comes before the peers, the others get what is left.
A step is ended when its share of ``--minutes``, and what earlier steps left of theirs, is spent. A crash is a row and
not the end. ``benchmarks/results/DATE-GPU-gpu.jsonl`` has a line about the machine and one for each step that ended:

    {"step": "bench openflamingo-3b", "system": …, "records": [its output's lines of JSON], "seconds": 41.2}
    {"step": …, "system": …, "records": [], "skipped": why}      {"step": …, "records": […], "error": what, …}
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.comparison.machine_names import about_machine, machine_name, slug
from benchmarks.gpu_steps import gpu_plan
from benchmarks.gpu_steps.gpu_table import printed
from benchmarks.processes import run
from flamingo_rt.engines.gpu.nvidia_driver import find_gpu
from flamingo_rt.files import replacing_file

HERE = Path(__file__).parent
LEAST = 5.0  # seconds in which a step can do something
KEPT = 500  # characters of an error


class Session:
    """A run of steps. ``about`` is the first line of the file at ``path``; ``seconds`` the budget, None for no end."""

    def __init__(self, path: Path, about: dict[str, Any], seconds: float | None) -> None:
        self.path, self.outcomes, self._about, self._seconds = path, list[dict[str, Any]](), about, seconds
        self._start, self._spent = time.monotonic(), 0.0

    def run(self, step: gpu_plan.Step) -> dict[str, Any]:
        """Run a step until the shares of the budget up to its own are used up. Without time for it, it is skipped."""
        self._spent += step.share
        limit = None
        if self._seconds is not None:
            limit = self._seconds * min(self._spent / 100, 1.0) - self.elapsed()
            if limit < LEAST:
                return self.add(step.name, step.system, skipped="no time was left for it")
        print(f"== {step.name}{': ' if step.system else ''}{step.system}", flush=True)
        try:
            finished = run(step.command, echo=True, together=True, limit=limit)
        except OSError as error:
            return self.add(step.name, step.system, error=f"{step.command[0]} cannot be started: {error}")
        records, more = list(objects(finished.output)), {"seconds": round(finished.seconds, 1)}
        if finished.status and limit is not None and finished.seconds >= limit:
            more["error"] = f"ended after its {limit:.0f} s; what it told before stands"
        elif finished.status:
            told = [line.strip() for line in finished.output.splitlines() if line.strip() and line[0] != "{"]
            more["error"] = f"status {finished.status}: {(told or ['it told nothing'])[-1]}"[:KEPT]
        elif records and "skipped" in records[-1]:
            more["skipped"] = records[-1]["skipped"]
        return self.add(step.name, step.system, records, **more)

    def add(self, step: str, system: str, records: Sequence[dict[str, Any]] = (), **more: Any) -> dict[str, Any]:
        """Keep an outcome and write the whole file, beside its place first: a kill leaves the last one."""
        self.outcomes.append({"step": step, "system": system, "records": list(records), **more})
        lines = [self._about | {"elapsed": round(self.elapsed(), 1)}, *self.outcomes]
        with replacing_file(self.path) as beside:
            beside.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        return self.outcomes[-1]

    def elapsed(self) -> float:
        """Seconds since the session began."""
        return time.monotonic() - self._start


def objects(output: str) -> Iterator[dict[str, Any]]:
    """The lines of an output that are JSON objects; one that was cut off is none."""
    for line in output.splitlines():
        try:
            if line.startswith("{"):
                yield json.loads(line)
        except ValueError:
            continue


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="a folder for bundles, engines and pictures; with --smoke: a new one")
    parser.add_argument("--minutes", type=float, default=10.0, help="the whole budget; default %(default)s")
    parser.add_argument("--prepare", action="store_true", help="make what needs no GPU, and end")
    parser.add_argument("--lowerings", default="tensorrt", help="with --prepare: of which graphs; default %(default)s")
    parser.add_argument("--smoke", action="store_true", help="small models on the CPU: does every step work?")
    parser.add_argument("--backends", default=",".join(gpu_plan.BACKENDS), help="in this order; default %(default)s")
    parser.add_argument("--only", metavar="A,B", help="steps by their first word, such as bench,peer; doctor always")
    made = HERE / "peers" / ".venv" / "bin" / "python"
    parser.add_argument("--peer-python", metavar="FILE", default=str(made) if made.is_file() else sys.executable,
                        help="Python of open_flamingo's environment; default %(default)s")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="default: benchmarks/results; smoke: --work")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.backends.split(",") if name not in gpu_plan.BACKENDS]
    if unknown:
        parser.error(f"--backends {', '.join(unknown)} is unknown; known: {', '.join(gpu_plan.BACKENDS)}")
    if options.work is None and not options.smoke:
        parser.error("--work FOLDER is needed: bundles and engines of 5 GB each are kept there")
    options.work = (options.work or Path(tempfile.mkdtemp(prefix="flamingo-rt-smoke-"))).resolve()
    options.results = options.results or (options.work if options.smoke or options.prepare else HERE / "results")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(arguments)
    size, machine, gpu = gpu_plan.SMOKE if options.smoke else gpu_plan.LARGE, about_machine(), find_gpu()
    date, name = datetime.date.today().isoformat(), slug(gpu.name) if gpu else machine_name(machine)
    about = {"format": 3, "date": date, "machine": machine, "gpu": asdict(gpu) if gpu else None, "size": asdict(size),
             "smoke": options.smoke, "minutes": options.minutes}
    session = Session(options.results / f"{date}-{name}-gpu.jsonl", about,
                      None if options.prepare else options.minutes * 60)
    if options.prepare:
        systems, only = gpu_plan.systems_of({"prepared": options.lowerings.split(",")}), "prompts,export"
    else:
        systems, only = [], options.only
        for doctor in session.run(gpu_plan.DOCTOR)["records"]:
            systems, missing = gpu_plan.gpu_systems(doctor, options.backends.split(","))
            for backend, why in missing.items():
                session.add("backend", backend, skipped=why)
    systems = gpu_plan.CPU_SYSTEMS if options.smoke else systems
    for step in gpu_plan.steps_of(size, systems, options.work, options.peer_python):
        if only is None or step.name.split()[0] in only.split(","):
            session.run(step)
    print(f"\n{printed(session.outcomes, judged=not options.smoke)}")
    failed = sum("error" in outcome for outcome in session.outcomes)
    print(json.dumps({"results": str(session.path), "steps": len(session.outcomes), "errors": failed,
                      "seconds": round(session.elapsed())}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
