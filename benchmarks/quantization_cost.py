"""Cost of quantizing a checkpoint: bytes, cosines with PyTorch, tokens that changed, right answers about drawn scenes.

    python -m benchmarks.quantization_cost [--ckpt models/tiny] [--scenes 300] [--ways fp32,int8,mixed,int4,nearest]

Each way is a run of ``flamingo-rt export`` with ``--calibration scenes``; what it measured is in the bundle's manifest.
The last digits depend on the threads of PyTorch: set OMP_NUM_THREADS. Prints a table, and writes a dated result to
``benchmarks/results``. Needs the extras ``export`` and ``train``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.dated_result import RESULTS, write_result
from benchmarks.processes import ROOT, folder_bytes, toolkit
from flamingo_rt.bundle import MANIFEST
from flamingo_rt.contract import LANGUAGE_MODEL

WAYS = {
    "fp32": (),
    "int8": ("--quantize", "int8"),
    "mixed": ("--quantize", "mixed"),
    "int4": ("--quantize", "int4"),
    "nearest": ("--quantize", "int4", "--rounding", "nearest"),
}


def export_options(way: str, scenes: int) -> tuple[str, ...]:
    """Options of ``export``; only a quantized bundle is calibrated and asked about scenes."""
    measuring = ("--calibration", "scenes", "--evaluate", str(scenes)) if WAYS[way] else ()
    return (*WAYS[way], *measuring)


def measure(checkpoint: Path, way: str, scenes: int, out: Path) -> dict[str, Any]:
    """Bytes of the bundle that is exported to ``out``, and what its manifest says of quantization."""
    toolkit("export", "--ckpt", str(checkpoint), *export_options(way, scenes), "--out", str(out))
    manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    return {"bytes": folder_bytes(out), **(manifest.get("quantization") or {})}


def row(way: str, found: Mapping[str, Any]) -> str:
    """A line of the table."""
    size = f"{way:8} {found['bytes'] / 1e6:5.1f} MB"
    if "quality" not in found:
        return size
    quality, logits = found["quality"], found["quality"]["graphs"][LANGUAGE_MODEL]
    before, after = found["accuracy"]["before"], found["accuracy"]["after"]
    shares = [f"{part} {before[part]:.1%} before, {after[part]:.1%} after" for part in before]
    return (f"{size}  cosine of the logits {logits['cosine']:.5f} (lowest {logits['lowest_cosine']:.5f}), "
            f"{quality['changed']} of {quality['tokens']} tokens changed; right {'; '.join(shares)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", type=Path, default=ROOT / "models" / "tiny", help="default: models/tiny")
    parser.add_argument("--scenes", type=int, default=300, help="asked about, at least one; default %(default)s")
    parser.add_argument("--ways", default=",".join(WAYS), help="default: all")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_args()
    ways = options.ways.split(",")
    if set(ways) - set(WAYS):
        parser.error(f"--ways {options.ways}: known are {', '.join(WAYS)}")
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in ways:
            measured[way] = measure(options.ckpt, way, options.scenes, Path(folder) / way)
            print(row(way, measured[way]), flush=True)
    settings = {"checkpoint": options.ckpt.name, "scenes": options.scenes,
                "options": {way: export_options(way, options.scenes) for way in ways},
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}
    path = write_result(options.results, "quantization-cost", settings, measured)
    print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
