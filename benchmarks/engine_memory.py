"""Memory of engines: computed for presets, and, with --work, measured while some are compiled.

    python -m benchmarks.engine_memory
    python -m benchmarks.engine_memory --work FOLDER          # needs tensorrt_rtx, and room for 4 GB

The computed figures, for fp16 and a GPU that shares the machine's memory, are as ``flamingo-rt build`` reckons them:
two bytes a parameter, cache, inputs and outputs at the limits. What is measured is the most memory that a process of
``flamingo-rt build --target tensorrt-rtx`` has at a time, without the mapped files, which the system can drop, beside
the bytes of the largest graph's weights, for models of several depths with random weights. Linux only.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flamingo_rt.checkpoints import expected_shapes
from flamingo_rt.child_process import child_environment, python_command
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import CACHE_FORMS, GRAPHS, LANGUAGE_MODEL, RESAMPLER, VISION_ENCODER, Limits
from flamingo_rt.engines.tensorrt.memory_estimate import memory_needs
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.export.random_model import random_model
from flamingo_rt.presets import preset

PRESETS = ("openflamingo-3b", "openflamingo-4b", "openflamingo-9b")
LAYERS = (1, 4, 8)
CASES = ((2048, 4), (1024, 1))  # tokens of the cache, rows


def graph_bytes(config: FlamingoConfig) -> dict[str, int]:
    """Bytes of each graph's weights in half precision: but for keys and values of cross-attention, which the resampler
    computes, the language model's are all that is not the vision encoder's or the resampler's."""
    sizes = dict.fromkeys(GRAPHS, 0)
    for name, shape in expected_shapes(config).items():
        graph = {"vision": VISION_ENCODER, "resampler": RESAMPLER}.get(name.split(".")[0], LANGUAGE_MODEL)
        sizes[graph] += 2 * math.prod(shape)
    return sizes


def computed(name: str) -> list[dict]:
    config, rows = preset(name), []
    weights = graph_bytes(config)
    for capacity, batch in CASES:
        limits = Limits.of(config, batch=batch, tokens=min(512, capacity), visuals=33, capacity=capacity)
        needs = memory_needs(config, weights, limits, "float16", CACHE_FORMS["tensorrt"], shared=True)
        rows.append({
            "model": name, "capacity": capacity, "rows": batch, "weights": sum(weights.values()), **vars(needs),
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
        peak, output = watched(python_command(
            "flamingo_rt", "build", "--model", str(folder), "--target", "tensorrt-rtx", "--compute-capability", "86",
            "--force", "--json",
        ))
        estimate = json.loads(output)["memory"]["building"]
        rows.append({"layers": layers, "weights": weights, "peak": peak, "estimate": estimate})
        shutil.rmtree(folder)
    return rows


def watched(command: Sequence[str]) -> tuple[int, str]:
    """The most anonymous memory that a process has had, looked at every few milliseconds, and its output."""
    process, peak = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=child_environment()), 0
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("RssAnon:")]
        peak = max(peak, *(1024 * int(size) for size in found), 0)
        time.sleep(0.005)
    if process.returncode:
        sys.exit(f"failed: {' '.join(command)}")
    return peak, process.stdout.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", action="append", help=f"repeatable; default {', '.join(PRESETS)}")
    parser.add_argument("--work", type=Path, help="measure too, with bundles in this folder")
    options = parser.parse_args()
    found = {"computed": [], "measured": measured(options.work) if options.work else []}
    for row in found["measured"]:
        print(f"{row['layers']} layers: weights {row['weights'] / 1e9:.2f} GB, peak {row['peak'] / 1e9:.2f} GB, "
              f"estimate {row['estimate'] / 1e9:.2f} GB", flush=True)
    print("| model | rows, tokens of the cache | weights | cache | engines and buffers | compiling, shared memory |")
    print("|---|---|---|---|---|---|")
    for name in options.preset or PRESETS:
        for row in computed(name):
            found["computed"].append(row)
            print(f"| `{name}` | {row['rows']}, {row['capacity']} | {row['weights'] / 1e9:.2f} GB | "
                  f"{row['cache'] / 1e9:.2f} GB | {row['running'] / 1e9:.2f} GB | {row['building'] / 1e9:.1f} GB |",
                  flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
