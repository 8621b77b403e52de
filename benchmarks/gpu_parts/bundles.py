"""What needs no GPU, or only for compiling: a system's bundle, its engines, and the workload for everybody.

    python -m benchmarks.gpu_parts.bundles --work FOLDER --model openflamingo-3b --system SYSTEM --engines
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from tokenizers import Tokenizer

import benchmarks.comparison.workload_folder as workloads
from benchmarks.gpu_parts.rows import reporting, tell
from benchmarks.gpu_parts.systems import PACKAGED, System, bundle_path, make_bundle, make_engines, system_path
from benchmarks.processes import folder_bytes
from flamingo_rt.bundle import read_bundle
from flamingo_rt.config import FlamingoConfig

# Rows, new tokens and cache of the large model's engines: 32 shots, and a prefill of 1,500 tokens.
LARGE_LIMITS = {"batch": 1, "tokens": 1536, "visuals": 33, "frames": 1, "capacity": 2048}


def limits_of(config: FlamingoConfig) -> dict[str, int]:
    """`LARGE_LIMITS`, as far as the model goes."""
    context = config.language.context
    most = {"tokens": context, "visuals": config.max_visuals, "capacity": context}
    return {name: min(value, most.get(name, value)) for name, value in LARGE_LIMITS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--system", type=System.named, required=True)
    parser.add_argument("--engines", action="store_true", help="compile them; else export the bundle")
    parser.add_argument("--compute-capability", type=lambda text: tuple(text.split(",")), default=(), metavar="86,89")
    options = parser.parse_args()
    work, model, system = options.work, options.model, options.system
    with reporting():
        start = time.perf_counter()
        if options.engines:
            bundle = read_bundle(make_bundle(work, model, system))
            path = make_engines(work, model, system, limits_of(bundle.config), options.compute_capability)
            size = folder_bytes(path / "engines")
        else:
            path = make_bundle(work, model, system)
            size = folder_bytes(path)
            if model != PACKAGED:
                write_workload(work, model, system)
        what = "engines compiled" if options.engines else "bundle exported"
        tell(what, round(time.perf_counter() - start, 1), "s", note=f"{size / 1e9:.3g} GB, {path.name}")


def write_workload(work: Path, model: str, system: System) -> None:
    """Prompts in the tokens of the bundle's own tokenizer, and pictures, unless they are there."""
    bundle = read_bundle(bundle_path(work, model, system))
    tokenizer = Tokenizer.from_file(str(bundle.tokenizer_path))
    workloads.write_workload(bundle.config, tokenizer, work / "workload")


def ready(work: Path, model: str, system: System, engines: bool) -> bool:
    """Whether there is nothing left to make."""
    if not engines or system.target is None:
        return (bundle_path(work, model, system) / "manifest.json").is_file() and (
            model == PACKAGED or (work / "workload" / workloads.DESCRIPTION).is_file()
        )
    return any(system_path(work, model, system).glob("engines/*/engine.json"))


if __name__ == "__main__":
    main()
