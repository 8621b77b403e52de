"""Everything that needs an NVIDIA GPU, in ten minutes: ``flamingo-rt bench`` and ``verify`` here, and the peer.

    python -m benchmarks.gpu_run --work FOLDER             # on the GPU's machine; FOLDER keeps bundles and engines
    python -m benchmarks.gpu_run --work FOLDER --prepare   # before, anywhere: bundles of 5 GB; takes minutes
    python -m benchmarks.gpu_run --smoke                   # the same steps, small, on this machine's CPU

Installed libraries are used, none is fetched: ``pip install -e .[export,train]`` with a CUDA build of PyTorch, then for
the backends ``.[cuda]`` and ``.[tensorrt]`` or ``.[tensorrt-rtx]`` (for clocks and power nvidia-ml-py). The peer is
open_flamingo, in this environment or, with ``--peer-python``, in its own: ``benchmarks/peers/make.sh``, there too with
a CUDA build of PyTorch. Without it this project's own PyTorch model stands in, and is named so.

The steps, each a process of its own, so that a crash or a want of memory is a line and not the end:

    doctor          libraries, backends, and the reason why one does not work
    export, build   the model at the size of OpenFlamingo-3B, random weights, fp16; its engines
    bench           each token, its share of the bandwidth, the first token, 32 shots cold and compiled
    verify          small models' reference outputs
    peer            the same prompts through open_flamingo on the same GPU, eager and with torch.compile

A step is ended when its share of ``--minutes``, and what earlier steps left of theirs, is spent; a step without time is
skipped. Backends behind the first one get what is left at the end. The result file,
``benchmarks/results/DATE-GPU-gpu.jsonl``, has every step as soon as it ends.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.comparison.machine_names import about_machine, machine_name, slug
from benchmarks.gpu_steps.gpu_plan import (
    BACKENDS,
    DOCTOR,
    LARGE,
    LOOK,
    SMOKE,
    Planned,
    first_steps,
    gpu_systems,
    prepared_steps,
    smoke_systems,
    steps_of,
)
from benchmarks.gpu_steps.gpu_session import FORMAT, Session
from benchmarks.gpu_steps.gpu_table import TARGETS, printed
from flamingo_rt.engines.gpu.nvidia_driver import find_gpu

HERE = Path(__file__).parent


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="a folder for bundles, engines and pictures; with --smoke: a new one")
    parser.add_argument("--minutes", type=float, default=10.0, help="the whole budget; default %(default)s")
    parser.add_argument("--prepare", action="store_true", help="make what needs no GPU, and end")
    parser.add_argument("--lowerings", default="tensorrt", help="with --prepare: of which graphs; default %(default)s")
    parser.add_argument("--compute-capability", default="", metavar="86,89",
                        help="with --prepare: TensorRT-RTX's engines for such GPUs too")
    parser.add_argument("--smoke", action="store_true", help="small models on the CPU: does every step work?")
    parser.add_argument("--backends", default=",".join(BACKENDS), help="in this order; default %(default)s")
    parser.add_argument("--only", metavar="A,B", help="steps by name, such as bench,peer; doctor always")
    parser.add_argument("--peer-python", metavar="FILE", help="Python of open_flamingo's environment; default: the one "
                        "that make.sh makes, else this one")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="default: benchmarks/results; smoke: --work")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="of the file; default: today")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.backends.split(",") if name not in BACKENDS]
    if unknown:
        parser.error(f"--backends {', '.join(unknown)} is unknown; known: {', '.join(BACKENDS)}")
    if options.work is None:
        if not options.smoke:
            parser.error("--work FOLDER is needed: bundles and engines of 5 GB each are kept there")
        options.work = Path(tempfile.mkdtemp(prefix="flamingo-rt-smoke-"))
    options.work = options.work.resolve()
    made = HERE / "peers" / ".venv" / "bin" / "python"
    options.peer_python = options.peer_python or (str(made) if made.is_file() else sys.executable)
    options.results = options.results or (options.work if options.smoke or options.prepare else HERE / "results")
    return options


def chosen(steps: Sequence[Planned], only: str | None) -> list[Planned]:
    """The steps that ``--only`` names; all without it."""
    return [step for step in steps if only is None or step.name in only.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(arguments)
    size, machine, gpu = SMOKE if options.smoke else LARGE, about_machine(), find_gpu()
    about = {"format": FORMAT, "date": options.date, "machine": machine, "gpu": asdict(gpu) if gpu else None,
             "size": asdict(size), "smoke": options.smoke, "minutes": options.minutes}
    options.work.mkdir(parents=True, exist_ok=True)
    name = slug(gpu.name) if gpu else machine_name(machine)
    path = options.results / f"{options.date}-{name}-gpu.jsonl"
    session = Session(path, about, None if options.prepare else options.minutes * 60)
    if options.prepare:
        capabilities = tuple(filter(None, options.compute_capability.split(",")))
        session.run(prepared_steps(size, options.work, options.lowerings.split(","), capabilities))
    else:
        session.run(first_steps(options.peer_python))
        systems, missing = gpu_systems(session.record(DOCTOR), options.backends.split(","))
        if options.smoke:
            systems = [*smoke_systems(), *systems]
        look = session.record(LOOK)
        no_peer = look.get("skipped", "" if look else f"{options.peer_python} does not run the look for it")
        planned = steps_of(size, systems, options.work, options.peer_python, no_peer)
        session.run(chosen([*missing, *planned], options.only))
    print("\n" + printed(session.outcomes, {} if options.smoke else TARGETS))
    failed = sum("error" in outcome for outcome in session.outcomes)
    print(json.dumps({"results": str(session.path), "steps": len(session.outcomes), "errors": failed,
                      "seconds": round(session.elapsed())}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
