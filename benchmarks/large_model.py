"""Time and peak memory of import, export and infer for a model of a released size, with random weights.

    python -m benchmarks.large_model --preset openflamingo-3b --work /path/with/40GB

Writes the three source files that a user of OpenFlamingo has (checkpoint.pt, CLIP's weights, the language model's
folder) with random values, once, then runs the command line on them, each command in a process of its own whose largest
resident memory the kernel reports. Mapped files count: a page that is read is resident. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.comparison.shapes import import_options, shape_of
from benchmarks.processes import folder_bytes
from benchmarks.processes import run as run_process
from benchmarks.random_sources import ensure_sources
from flamingo_rt.child_process import python_command


def measure(command: list[str]) -> tuple[float, int, str]:
    """Seconds, peak resident bytes and output of a process. Ends this program when it fails."""
    print("$", " ".join(command), flush=True)
    finished = run_process(command)
    if finished.status:
        sys.exit(f"failed with status {finished.status}: {' '.join(command)}")
    return finished.seconds, finished.peak_bytes, finished.output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="openflamingo-3b")
    parser.add_argument("--work", type=Path, required=True, help="a folder with room for four times the model")
    parser.add_argument("--dtype", action="append", choices=["fp32", "fp16", "bf16"], help="repeatable; default fp32")
    parser.add_argument("--direct", action="store_true", help="export from the three sources too")
    parser.add_argument("--keep", action="store_true", help="keep checkpoint and bundle")
    options = parser.parse_args()
    config, sources = shape_of(options.preset), options.work / options.preset
    ensure_sources(config, sources)
    picture = options.work / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)).save(picture)
    files = ["--vision", str(sources / "vision.safetensors"), "--language", str(sources / "language")]
    tool, rows = list(python_command("flamingo_rt")), []

    def run(name: str, dtype: str, command: list[str], weights: int, out: Path | None) -> None:
        seconds, peak, output = measure(tool + command)
        written = folder_bytes(out) if out else weights
        rows.append({"step": name, "dtype": dtype, "seconds": round(seconds, 1), "peak_bytes": peak,
                     "weight_bytes": written, "ratio": round(peak / written, 3), "output": output.splitlines()[-1]})
        memory = f"peak {peak / 1e9:.2f} GB = {peak / written:.2f} of {written / 1e9:.2f} GB"
        print(f"{name} {dtype}: {seconds:.0f} s, {memory}")

    for dtype in options.dtype or ["fp32"]:
        checkpoint, bundle, direct = (options.work / f"{dtype}-{name}" for name in ("checkpoint", "bundle", "direct"))
        for folder in (checkpoint, bundle, direct):
            shutil.rmtree(folder, ignore_errors=True)
        run("import", dtype, ["import", "openflamingo", "--checkpoint", str(sources / "checkpoint.pt"), *files,
                              *import_options(options.preset), "--dtype", dtype, "--out", str(checkpoint)],
            0, checkpoint)
        run("export", dtype, ["export", "--ckpt", str(checkpoint), "--dtype", dtype, "--out", str(bundle)], 0, bundle)
        weights = folder_bytes(bundle)
        run("infer", dtype, ["infer", "--model", str(bundle), "--image", str(picture), "--max-new-tokens", "8",
                             "--json"], weights, None)
        if not options.keep:
            shutil.rmtree(checkpoint)
        if options.direct:
            run("export from the sources", dtype, ["export", "--ckpt", str(sources / "checkpoint.pt"), *files,
                                                   "--dtype", dtype, "--out", str(direct)], 0, direct)
            shutil.rmtree(direct)
        if not options.keep:
            shutil.rmtree(bundle)
    print(json.dumps({
        "preset": options.preset, "cores": os.cpu_count(), "machine": platform.machine(),
        "python": platform.python_version(), "torch": torch.__version__, "runs": rows,
    }))


if __name__ == "__main__":
    main()
