"""Everything that only a machine with an NVIDIA GPU can show, in ten minutes: right, how fast, beside the peer.

    python -m benchmarks.gpu --work FOLDER                    # on the GPU's machine; FOLDER keeps bundles and engines
    python -m benchmarks.gpu --work FOLDER --prepare          # before, anywhere: what needs no GPU, 5 GB; takes minutes
    python -m benchmarks.gpu --smoke                          # the same parts, small, on this machine's CPU

What is installed is used, nothing is fetched: ``pip install -e .[export,train]`` with a CUDA build of PyTorch, then for
the backends ``.[cuda]`` and ``.[tensorrt]`` or ``.[tensorrt-rtx]`` (for clocks and power nvidia-ml-py). The peer is
open_flamingo, in this environment or, with ``--peer-python``, in its own: ``benchmarks/peers/make.sh``, there too with
a CUDA build of PyTorch. Without it this project's own PyTorch model stands in, and is named so.

The parts, each a process of its own (`gpu_parts/`), so that a crash or a want of memory is a row and not the end:

    facts     GPU, driver, clocks, versions; bytes per second of copies within the GPU
    export, build   the model at the size of OpenFlamingo-3B, random weights, fp16; its engines
    speed     each token, the share of the bandwidth, the first token, 32 shots cold and compiled
    correct   graphs, greedy tokens and compiled prompts of small models, beside PyTorch in float32
    peer      the same prompts through open_flamingo on the same GPU, eager and with torch.compile

A part is ended when its share of ``--minutes`` and what those before it left is spent, or skipped; the table says why.
Backends behind the first one have what is left at the end. The result file,
``benchmarks/results/DATE-GPU-gpu.json``, has every row as soon as it is known. Not run on a GPU so far.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).parent
from benchmarks.comparison.machine_names import about_machine, machine_name, slug
from benchmarks.gpu_parts.plan import (
    LARGE,
    SMOKE,
    Part,
    Skipped,
    facts_part,
    gpu_systems,
    parts_of,
    prepared_parts,
    smoke_systems,
)
from benchmarks.gpu_parts.running import FORMAT, Session
from benchmarks.gpu_parts.table import TARGETS, printed


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="a folder for bundles, engines and pictures; with --smoke: a new one")
    parser.add_argument("--minutes", type=float, default=10.0, help="the whole budget; default %(default)s")
    parser.add_argument("--prepare", action="store_true", help="make what needs no GPU, and end")
    parser.add_argument("--lowerings", default="tensorrt", help="with --prepare: of which graphs; default %(default)s")
    parser.add_argument("--compute-capability", default="", metavar="86,89",
                        help="with --prepare: TensorRT-RTX's engines for such GPUs too")
    parser.add_argument("--smoke", action="store_true", help="small models, on the CPU: does every part work?")
    parser.add_argument("--only", metavar="A,B", help="parts by name, such as speed,peer; facts always")
    parser.add_argument("--peer-python", metavar="FILE", help="of open_flamingo's environment; default: make.sh's, "
                        "else this one")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="default: benchmarks/results; smoke: --work")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="of the file; default: today")
    options = parser.parse_args(arguments)
    if options.work is None:
        if not options.smoke:
            parser.error("--work FOLDER is needed: bundles and engines of 5 GB each are kept there")
        options.work = Path(tempfile.mkdtemp(prefix="flamingo-rt-smoke-"))
    options.work = options.work.resolve()
    made = HERE / "peers" / ".venv" / "bin" / "python"
    options.peer_python = options.peer_python or (str(made) if made.is_file() else sys.executable)
    options.results = options.results or (options.work if options.smoke or options.prepare else HERE / "results")
    return options


def chosen(parts: list[Part | Skipped], only: str | None) -> list[Part | Skipped]:
    """The parts that ``--only`` names; all without it."""
    return [part for part in parts if only is None or part.name in only.split(",")]


def main(arguments: list[str] | None = None) -> int:
    options = options_of(arguments)
    size = SMOKE if options.smoke else LARGE
    machine = about_machine()
    about = {"format": FORMAT, "date": options.date, "machine": machine, "size": asdict(size), "smoke": options.smoke,
             "minutes": options.minutes}
    options.work.mkdir(parents=True, exist_ok=True)
    path = options.results / f"{options.date}-{machine_name(machine)}-gpu.json"
    session = Session(path, about, None if options.prepare else options.minutes * 60)
    if options.prepare:
        numbers = tuple(filter(None, options.compute_capability.split(",")))
        session.run(prepared_parts(size, options.work, options.lowerings.split(","), numbers))
    else:
        facts = facts_part(options.peer_python)
        session.run([facts])
        known = next((row for row in session.rows if row.get("key") == "available"), {})
        if known.get("gpu"):
            session.path.unlink(missing_ok=True)
            session.path = options.results / f"{options.date}-{slug(known['gpu'])}-gpu.json"
        systems, missing = gpu_systems(known.get("available", {}))
        if options.smoke:
            systems = [*smoke_systems(), *systems]
        planned = parts_of(size, systems, options.work, options.peer_python, known.get("peer", "not looked for"))
        session.run(chosen([*missing, *planned], options.only), spent=facts.share)
    print("\n" + printed(session.rows, {} if options.smoke else TARGETS))
    failed = sum("error" in row for row in session.rows)
    print(json.dumps({"results": str(session.path), "rows": len(session.rows), "errors": failed,
                      "seconds": round(session.elapsed())}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
