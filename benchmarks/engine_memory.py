"""How much memory engines take: computed for presets, and, with --work, measured while some are compiled.

    python benchmarks/engine_memory.py
    python benchmarks/engine_memory.py --work FOLDER          # needs tensorrt_rtx, and room for 6 GB

The computed figures are those that ``flamingo-rt build`` prints: weights of the traced graphs, cache, inputs and
outputs at the limits. What is measured is the largest resident memory of ``flamingo-rt build --target tensorrt-rtx`` in
a process of its own, beside the bytes of the largest graph's weights, for models of several depths with random weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from processes import run as run_process

from flamingo_rt.checkpoints import DTYPES
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import CACHE_FORMS, LANGUAGE_MODEL, Limits
from flamingo_rt.engines.build_memory import memory_needs
from flamingo_rt.export.graphs import trace_graphs
from flamingo_rt.export.half_precision import in_half
from flamingo_rt.export.pipeline import GRAPH_DTYPES, export_model
from flamingo_rt.export.random import random_model
from flamingo_rt.export.weights import Weights, external_bytes
from flamingo_rt.presets import preset

PRESETS = ("openflamingo-3b", "openflamingo-4b", "openflamingo-9b", "flamingo-3b")
LAYERS = (1, 4, 12)
CASES = (("fp16", 2048, 4), ("fp16", 1024, 1))  # type, capacity, rows


def graph_bytes(config: FlamingoConfig, compute: str, lowering: str) -> dict[str, int]:
    """Bytes of each graph's weights, without writing any."""
    weights = Weights(in_half(random_model(config), DTYPES[compute]).tensors, DTYPES[compute])
    return {
        name: external_bytes(graph)
        for name, graph in trace_graphs(config, lowering, weights.bind, False, GRAPH_DTYPES[compute])
    }


def computed(name: str) -> list[dict]:
    config, rows = preset(name), []
    for compute, capacity, batch in CASES:
        weights = graph_bytes(config, compute, "tensorrt")
        limits = Limits.of(config, batch=batch, tokens=min(512, capacity), visuals=33, capacity=capacity)
        needs = memory_needs(config, weights, limits, GRAPH_DTYPES[compute], CACHE_FORMS["tensorrt"], shared=True)
        rows.append({
            "model": name, "compute": compute, "capacity": capacity, "rows": batch, "weights": sum(weights.values()),
            **vars(needs),
        })
    return rows


def measured(work: Path) -> list[dict]:
    rows = []
    for layers in LAYERS:
        config = preset("openflamingo-3b")
        config = replace(
            config, vision=replace(config.vision, layers=1), resampler=replace(config.resampler, layers=1),
            language=replace(config.language, layers=layers),
        )
        folder = work / f"layers-{layers}"
        bundle = export_model(
            random_model(config), folder, lowering="tensorrt", compute="fp16", overwrite=True, compare=False
        )
        weights = Path(f"{bundle.graph_path(LANGUAGE_MODEL)}.data").stat().st_size
        done = run_process([
            sys.executable, "-m", "flamingo_rt", "build", "--model", str(folder), "--target", "tensorrt-rtx",
            "--compute-capability", "86", "--force", "--json",
        ])
        if done.status:
            sys.exit(done.output)
        rows.append({
            "layers": layers, "weights": weights, "peak": done.peak_bytes, "seconds": round(done.seconds, 1),
            "estimate": json.loads(done.last_line)["memory"]["building"],
        })
        shutil.rmtree(folder)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", action="append", help=f"repeatable; default {', '.join(PRESETS)}")
    parser.add_argument("--work", type=Path, help="measure too, with bundles in this folder")
    options = parser.parse_args()
    found = {"computed": [], "measured": measured(options.work) if options.work else []}
    for row in found["measured"]:
        print(f"{row['layers']} layers: weights {row['weights'] / 1e9:.2f} GB, peak {row['peak'] / 1e9:.2f} GB, "
              f"estimate {row['estimate'] / 1e9:.2f} GB, {row['seconds']} s", flush=True)
    print("| model | rows, tokens of the cache | weights | cache | engines and buffers | compiling, shared memory |")
    print("|---|---|---|---|---|---|")
    for name in options.preset or PRESETS:
        for row in computed(name):
            found["computed"].append(row)
            print(f"| `{name}` {row['compute']} | {row['rows']}, {row['capacity']} | {row['weights'] / 1e9:.2f} GB | "
                  f"{row['cache'] / 1e9:.2f} GB | {row['running'] / 1e9:.2f} GB | {row['building'] / 1e9:.1f} GB |",
                  flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
