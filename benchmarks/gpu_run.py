"""Everything that needs an NVIDIA GPU, in ten minutes: the product's own commands, and the same prompts in PyTorch.

    python -m benchmarks.gpu_run --work FOLDER             # on the GPU's machine; FOLDER keeps bundles and engines
    python -m benchmarks.gpu_run --work FOLDER --prepare   # before, anywhere: bundles of 5 GB; takes minutes
    python -m benchmarks.gpu_run --smoke                   # the same steps, small, on this machine's CPU
    python -m benchmarks.gpu_run --pack FOLDER             # for a machine without a network, elsewhere
    python -m benchmarks.gpu_run --unpack-and-run FOLDER   # there, on a copy of FOLDER and a checkout

Installed libraries are used, none is fetched: ``pip install -e .[gpu,cuda,export,train]`` with a CUDA build of PyTorch,
and ``.[tensorrt]`` or ``.[tensorrt-rtx]`` for their backends (for clocks and power nvidia-ml-py). open_flamingo is in
this environment or, with ``--peer-python``, in its own: ``benchmarks/peers/make.sh``, there too with CUDA.

A pack has wheels of this project, of open_flamingo and of what the machine lacks (``--there``), in pieces of at most
``--piece-mb`` with a manifest of SHA-256 sums; weights are made there. What its backends need and no index has as
wheels, such as TensorRT's libraries, is taken from ``--wheels``, or left out and said in the table. Unpacking checks
the pieces, installs into a private folder beside the packages that are there, and goes on as above.

Each step is a process: ``flamingo-rt doctor``; for each backend ``export``, ``build`` and ``verify`` of small models,
then ``export``, ``build`` and ``bench`` of a model at the size of OpenFlamingo-3B with random weights; the prompts of
``bench`` in open_flamingo and in our own PyTorch model, eager and compiled. PyTorch and the first other backend that
works come before the peers, the others get what is left. Backends that the GPU or its driver rules out are rows that
say so. A step is ended when its share of ``--minutes``, and what earlier steps left of theirs, is spent. A crash is a
row and not the end. ``benchmarks/results/DATE-GPU-gpu.jsonl`` has a line about the machine and one for each step that
ended:

    {"step": "bench openflamingo-3b", "system": …, "records": [its output's lines of JSON], "seconds": 41.2}
    {"step": …, "system": …, "records": [], "skipped": why}      {"step": …, "records": […], "error": what, …}

Nothing but the standard library is imported here: on the GPU's machine nothing else may be there yet.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_steps.gpu_support import BACKENDS
from flamingo_rt.errors import FlamingoError

HERE = Path(__file__).parent


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path,
                        help="a folder for bundles, engines and pictures; with --smoke: a new one, with "
                        "--unpack-and-run: run, in the pack")
    parser.add_argument("--minutes", type=float, default=10.0, help="the whole budget; default %(default)s")
    parser.add_argument("--prepare", action="store_true", help="make what needs no GPU, and end")
    parser.add_argument("--lowerings", default="tensorrt", help="with --prepare: of which graphs; default %(default)s")
    parser.add_argument("--smoke", action="store_true", help="small models on the CPU: does every step work?")
    parser.add_argument("--backends", help=f"in this order; default: {','.join(BACKENDS)}; with --pack: those that are "
                        "carried, without TensorRT-RTX by default")
    parser.add_argument("--only", metavar="A,B", help="steps by their first word, such as bench,peer; doctor always")
    made = HERE / "peers" / ".venv" / "bin" / "python"
    parser.add_argument("--peer-python", metavar="FILE", default=str(made) if made.is_file() else sys.executable,
                        help="Python of open_flamingo's environment; default %(default)s")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="default: benchmarks/results; smoke: --work")
    parser.add_argument("--notes", type=Path, metavar="FILE", help="findings of unpacking, for the table")
    pack = parser.add_argument_group("a machine without a network")
    pack.add_argument("--pack", type=Path, metavar="FOLDER", help="write a folder to carry there, and end")
    pack.add_argument("--there", type=Path, metavar="FILE", default=HERE / "gpu_steps" / "packages_there.txt",
                      help="packages there (`pip list --format=freeze`); default: an image with PyTorch 2.11 for CUDA")
    pack.add_argument("--wheels", type=Path, metavar="FOLDER", help="more wheels for that machine, such as TensorRT's")
    pack.add_argument("--python", default="3.12", help="that machine's version; default %(default)s")
    pack.add_argument("--piece-mb", type=float, default=59.0, help="largest file, in MB; default %(default)s")
    pack.add_argument("--unpack-and-run", type=Path, metavar="FOLDER", help="check, install and measure, there")
    options = parser.parse_args(arguments)
    unknown = [name for name in (options.backends or BACKENDS[0]).split(",") if name not in BACKENDS]
    if unknown:
        parser.error(f"--backends {', '.join(unknown)} is unknown; known: {', '.join(BACKENDS)}")
    if options.piece_mb < 0.001:
        parser.error(f"--piece-mb is {options.piece_mb:g}: give 0.001 or more")
    if options.minutes <= 0:
        parser.error(f"--minutes is {options.minutes:g}: give more than 0")
    if options.unpack_and_run is not None:
        options.work = options.work or options.unpack_and_run / "run"
    if options.work is None and not options.smoke and options.pack is None:
        parser.error("--work FOLDER is needed: bundles and engines of 5 GB each are kept there")
    options.work = (options.work or Path(tempfile.mkdtemp(prefix="flamingo-rt-smoke-"))).resolve()
    options.results = options.results or (options.work if options.smoke or options.prepare else HERE / "results")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(arguments)
    try:
        if options.pack is not None:
            return _pack(options)
        if options.unpack_and_run is not None:
            return _unpack_and_run(options)
        from benchmarks.gpu_steps.gpu_measuring import measure

        return measure(options)
    except FlamingoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _pack(options: argparse.Namespace) -> int:
    from benchmarks.gpu_steps.pack import CARRIED, Target, read_there, write_pack

    target = Target(options.python, read_there(options.there), options.wheels)
    backends = options.backends.split(",") if options.backends else CARRIED
    left_out = write_pack(options.pack.resolve(), target, backends, int(options.piece_mb * 1e6))
    for group, why in left_out.items():
        print(f"left out, {group}: {why}; wheels that can be had elsewhere are taken from --wheels FOLDER")
    print(f"wrote {options.pack}: copy it there, and run python -m benchmarks.gpu_run --unpack-and-run FOLDER")
    return 0


def _unpack_and_run(options: argparse.Namespace) -> int:
    from benchmarks.gpu_steps.unpacking import unpack_and_run

    more = ["--work", str(options.work), "--results", str(options.results.resolve())]
    for name in ("backends", "only"):
        if getattr(options, name):
            more += [f"--{name}", getattr(options, name)]
    more += ["--smoke"] if options.smoke else []
    return unpack_and_run(options.unpack_and_run.resolve(), options.work, options.minutes, more)


if __name__ == "__main__":
    sys.exit(main())
