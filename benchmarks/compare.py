"""Our runtime beside its peers on one machine: open_flamingo with the same weights, IDEFICS at the same size.

    benchmarks/peers/make.sh                                   # the peers' environment, once
    python -m benchmarks.compare --work FOLDER                 # OpenFlamingo-3B; FOLDER needs 36 GB, 26 with --clean
    python -m benchmarks.compare --work FOLDER --preset openflamingo-small --tokens 8 --repeats 2     # to try it
    python -m benchmarks.compare --work FOLDER --only peer-fp32,ours-int8      # in pieces: the same file is filled

Writes the model's source files with random values once, makes our bundles from them, and runs every system in a process
of its own, one after the other, measuring the memory's bandwidth in between. Prompts are the same token ids, pictures
the same pixels (`comparison/workload_folder.py`); ``captions-…`` decode given captions (`comparison/captions.py`, which
needs the extra ``train``). Results go to ``benchmarks/results/DATE-MACHINE-PRESET.json`` with all
samples, the chart beside it; the tables are printed. ``--only sources``, ``tables`` and ``chart`` do just that.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.comparison.captions import write_captions
from benchmarks.comparison.chart import draw
from benchmarks.comparison.compared_systems import (
    MEASURED,
    SYSTEMS,
    System,
    build_command,
    infer_command,
    measure_command,
    sources_command,
)
from benchmarks.comparison.comparison_tables import report
from benchmarks.comparison.machine_names import about_machine, machine_name, slug
from benchmarks.comparison.result_file import Record, merged, read_results, result_path, write_results
from benchmarks.comparison.shapes import SHAPES, comparable
from benchmarks.comparison.workload_folder import write_workload
from benchmarks.peers.answer_timing import CAPTIONS, WORKLOAD, Plan, add_plan_options, plan_of
from benchmarks.processes import TAIL, Finished, folder_bytes, run
from flamingo_rt.bench.bandwidth import BandwidthProbe
from flamingo_rt.errors import FlamingoError
from flamingo_rt.importing.openflamingo_tokenizer import read_tokenizer

HERE = Path(__file__).parent
SCENE = HERE.parent / "examples" / "scene.png"
STEPS = ("sources", *SYSTEMS, "tables", "chart")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
INFER_TOKENS, INFER_RUNS, START_RUNS = 8, 3, 10


class Failed(Exception):
    """A step that did not work; the others go on."""


class Comparison:
    """The work folder, the result file, and how to add to both."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options, self._plan = options, plan_of(options)
        self._config = comparable(options.preset)
        self._work = options.work.resolve()
        machine = about_machine()
        name = slug(options.machine) if options.machine else machine_name(machine)
        self.path = result_path(options.results, options.date, name, options.preset)
        self.results = read_results(self.path, options.date, options.preset, machine)

    def prepare(self) -> None:
        """Sources and workload."""
        self._work.mkdir(parents=True, exist_ok=True)
        if not (self._work / "sources").is_dir():
            self._finished(sources_command(self._work, self._options.preset), echo=True)
        tokenizer, _ = read_tokenizer(self._work / "sources" / "language", None)
        write_workload(self._config, tokenizer, self._work / WORKLOAD)
        try:
            write_captions(self._config, tokenizer, self._work / CAPTIONS)
        except FlamingoError as error:
            raise Failed(str(error)) from error

    def measure(self, system: System) -> None:
        """Run one system and keep its record. Raises `Failed`."""
        if system.model:
            self._build(system.model)
        print(f"== {system.name}", flush=True)
        before = bandwidth(self._plan.threads)
        if system.kind in MEASURED:
            record = self._cases(system)
        else:
            record = self._infer(system) if system.kind == "infer" else self._start()
        rates = [rate for rate in (before, bandwidth(self._plan.threads)) if rate]
        record |= {"measured_at": now(), "bandwidth": rates}
        self._keep("runs", system.name, record)

    def clean(self, model: str) -> None:
        """Remove a folder that was made from the sources."""
        shutil.rmtree(self._work / model, ignore_errors=True)

    def _build(self, model: str) -> None:
        if (self._work / model).is_dir():
            return
        command = build_command(model, self._work, self._options.preset)
        print(f"== making {model}", flush=True)
        finished = self._finished(command)
        record = {"seconds": round(finished.seconds, 2), "peak_bytes": finished.peak_bytes,
                  "bytes": folder_bytes(self._work / model), "output": json.loads(finished.last_line),
                  "measured_at": now()}
        self._keep("builds", model, record)

    def _cases(self, system: System) -> Record:
        peer = self._options.peer_python
        if system.kind != "ours" and not Path(peer).is_file():
            raise Failed(f"there is no peers' environment at {peer}: benchmarks/peers/make.sh makes it, or give "
                         "--peer-python")
        command = measure_command(system, self._work, self._options.preset, peer, plan_options(self._plan))
        finished = self._finished(command, echo=True)
        return json.loads(finished.last_line) | {"process_s": round(finished.seconds, 2)}

    def _infer(self, system: System) -> Record:
        """``flamingo-rt infer``: whole process, its memory beside the bundle's size."""
        bundle, picture = self._work / system.model, self._work / WORKLOAD / "picture-00.png"
        command = infer_command(bundle, picture, self._plan.threads, INFER_TOKENS, as_json=True)
        runs = [self._finished(command) for _ in range(INFER_RUNS)]
        return {
            "threads": self._plan.threads, "tokens": INFER_TOKENS, "bundle_bytes": folder_bytes(bundle),
            "seconds": [round(finished.seconds, 3) for finished in runs],
            "peak_bytes": [finished.peak_bytes for finished in runs],
            "timings_ms": [json.loads(finished.last_line)["timings_ms"] for finished in runs],
        }

    def _start(self) -> Record:
        """The packaged model: from the start of the process to the first word, and to its end."""
        command = infer_command(None, SCENE, self._plan.threads, 64, as_json=False)
        runs = [self._finished(command) for _ in range(START_RUNS + 1)][1:]
        return {
            "threads": self._plan.threads, "answer": runs[0].output,
            "first_output_s": [round(finished.first_output, 4) for finished in runs],
            "seconds": [round(finished.seconds, 4) for finished in runs],
        }

    def _finished(self, command: list[str], echo: bool = False) -> Finished:
        print("$", " ".join(command), flush=True)
        finished = run(command, dict.fromkeys(THREAD_VARIABLES, str(self._plan.threads)), echo=echo)
        if finished.status:
            raise Failed(f"status {finished.status} of {' '.join(command)}\n{finished.output[-TAIL:]}")
        return finished

    def _keep(self, part: str, name: str, record: Record) -> None:
        # The file is read again: a piece of the comparison may have been measured meanwhile.
        results = read_results(self.path, self.results["date"], self.results["preset"], self.results["machine"])
        self.results = merged(results, part, name, record)
        write_results(self.path, self.results)


def plan_options(plan: Plan) -> list[str]:
    """The plan as options of a measuring script."""
    options: dict[str, Any] = {
        "--threads": plan.threads, "--tokens": plan.tokens, "--repeats": plan.repeats, "--budget": plan.budget,
        "--beams": plan.beams, "--beam-tokens": plan.beam_tokens, "--queries": plan.queries,
        "--caption-shots": ",".join(map(str, plan.caption_shots)),
    }
    if plan.shots is not None:
        options["--shots"] = ",".join(map(str, plan.shots))
    return [str(word) for option in options.items() for word in option]


def bandwidth(threads: int) -> float | None:
    """Bytes per second that memory is read at, or None where it cannot be measured."""
    try:
        with BandwidthProbe(threads) as probe:
            rate, way = probe.read()
    except FlamingoError as error:
        print(f"note: {error}")
        return None
    print(f"   memory is read at {rate / 1e9:.1f} GB/s ({way})", flush=True)
    return round(rate)


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def chosen(text: str | None) -> list[str]:
    """The steps that ``--only`` names, in the order in which they are done; all without it."""
    if text is None:
        return list(STEPS)
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        raise SystemExit(f"--only {', '.join(unknown)} is unknown; known: {', '.join(STEPS)}")
    return [step for step in STEPS if step in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for sources, bundles and pictures")
    parser.add_argument("--preset", default="openflamingo-3b", choices=SHAPES)
    parser.add_argument("--only", metavar="A,B", help=f"of {', '.join(STEPS)}")
    parser.add_argument("--peer-python", default=str(HERE / "peers" / ".venv" / "bin" / "python"), metavar="FILE",
                        help="the Python of the peers' environment; default: where make.sh makes it")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="of the file; default: today")
    parser.add_argument("--machine", metavar="NAME", help="in the file's name; default: the CPU's")
    parser.add_argument("--clean", action="store_true", help="remove bundles and checkpoint after the last run of each")
    add_plan_options(parser)
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    comparison, steps, failures = Comparison(options), chosen(options.only), []
    systems = [SYSTEMS[step] for step in steps if step in SYSTEMS]
    try:
        if systems or "sources" in steps:
            comparison.prepare()
    except Failed as error:
        raise SystemExit(f"the sources cannot be written: {error}") from error
    for number, system in enumerate(systems):
        try:
            comparison.measure(system)
        except Failed as error:
            failures.append(system.name)
            print(f"failed: {system.name}: {error}", flush=True)
        later = {other.model for other in systems[number + 1 :]}
        if options.clean and system.model and system.model not in later:
            comparison.clean(system.model)
    if comparison.results["runs"]:
        print("\n" + report(comparison.results))
        if "chart" in steps:
            draw(comparison.results, comparison.path.with_suffix(".svg"))
    print(json.dumps({"results": str(comparison.path), "done": [s.name for s in systems if s.name not in failures],
                      "failed": failures}))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
