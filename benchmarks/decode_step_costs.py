"""Costs of decode steps of 2, 4, 8 and 16 tokens, in steps of one token: the tables in `flamingo_rt.step_costs`.

    python -m benchmarks.decode_step_costs [--preset openflamingo-3b] [--layers 6] [--schemes none,int8,mixed,int4]
    python -m benchmarks.decode_step_costs --model BUNDLE

A slice of the preset is exported for each scheme: random weights in matrices of its widths, ``--layers`` layers of the
language model, a vocabulary that is smaller by the same factor. Or a bundle is measured as it is. Steps of all sizes
are taken in turns, behind the same cache, so that what drifts on the machine drifts for all of them. A cost is the
median of the rounds' ratios to a step of one token. The ratio of the fastest steps stands beside it: on a quiet machine
both agree. The last line is JSON with all samples. Needs the extra ``export``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import flamingo_rt
from benchmarks.comparison.machine_names import about_machine
from flamingo_rt.bench.statistics import sample
from flamingo_rt.bench.workload import CacheFilling, Pictures
from flamingo_rt.config import FlamingoConfig, NFNetConfig
from flamingo_rt.cores import core_count
from flamingo_rt.errors import FlamingoError
from flamingo_rt.presets import own_preset
from flamingo_rt.runtime.decoder import Decoder
from flamingo_rt.runtime.model import Model

SIZES = (1, 2, 4, 8, 16)
SCHEMES = ("none", "int8", "mixed", "int4")
CALLS = 3  # consecutive steps of a size in a round; the first is not counted
Rounds = dict[int, list[float]]  # milliseconds by size, one number a round


@dataclass(frozen=True)
class Measured:
    """Costs by size: the median of the rounds' ratios, and the ratio of the fastest steps."""

    median: dict[int, float]
    fastest: dict[int, float]

    @staticmethod
    def of(rounds: Rounds) -> Measured:
        """The costs that the rounds show."""
        one = rounds[1]
        return Measured(
            {size: statistics.median(time / base for time, base in zip(times, one, strict=True))
             for size, times in rounds.items()},
            {size: min(times) / min(one) for size, times in rounds.items()},
        )


def slice_of(config: FlamingoConfig, layers: int) -> FlamingoConfig:
    """The configuration with ``layers`` layers in the language model, the vocabulary in proportion, and one layer each
    in front of it."""
    vision, language = config.vision, config.language
    small = replace(vision, depths=(1,) * len(vision.depths)) if isinstance(vision, NFNetConfig) else replace(
        vision, layers=1
    )
    vocabulary = max(1024, round(language.vocab_size * layers / language.layers))
    return replace(
        config, vision=small, resampler=replace(config.resampler, layers=1),
        language=replace(language, layers=layers, vocab_size=vocabulary),
    )


def export_slice(config: FlamingoConfig, scheme: str, folder: Path) -> Path:
    """A bundle of random weights, its matrices quantized by ``scheme`` ("none": float32)."""
    from flamingo_rt.export.pipeline import export_model
    from flamingo_rt.export.quantization.quantized_export import Quantize
    from flamingo_rt.export.random_model import random_model

    quantize = None if scheme == "none" else Quantize(scheme, rounding="nearest")
    export_model(random_model(config), folder, compare=False, quantize=quantize)
    return folder


def filled_decoder(model: Model, context: int) -> Decoder:
    """A decoder of one row whose cache holds a picture and ``context`` tokens."""
    filling = CacheFilling(model, Pictures(seed=0).take(1)[0])
    decoder = filling.decoder(1, context + max(SIZES))
    decoder.prefill(filling.rows(1, context))
    return decoder


def steps(model: Model, decoder: Decoder, context: int) -> dict[int, Callable[[], Mapping[str, float]]]:
    """Runs by size: the fastest of `CALLS` steps but the first, milliseconds."""
    filling = CacheFilling(model, Pictures(seed=0).take(1)[0])

    def run_of(size: int) -> Callable[[], Mapping[str, float]]:
        tokens = filling.text_ids(size)

        def run() -> Mapping[str, float]:
            times = []
            for _ in range(CALLS):
                decoder.rewind(context)
                start = time.perf_counter()
                decoder.extend(tokens)
                times.append((time.perf_counter() - start) * 1e3)
            return {"ms": min(times[1:])}

        return run

    return {size: run_of(size) for size in SIZES}


def measured(path: Path, options: argparse.Namespace) -> Rounds:
    """Milliseconds of the bundle's steps, round by round. Raises `FlamingoError`."""
    model = flamingo_rt.load(path, backend=options.backend, threads=options.threads)
    with filled_decoder(model, options.context) as decoder:
        samples = sample(steps(model, decoder, options.context), options.runs, 1, float("inf"))
    return {size: times["ms"] for size, times in samples.items()}


def told(name: str, costs: Measured, rounds: Rounds) -> str:
    """A line of a table: the time of a step of one token, then the costs."""
    shown = "".join(f"  {size}: {costs.median[size]:.2f} ({costs.fastest[size]:.2f})" for size in SIZES[1:])
    return f"{name:6} 1 token {statistics.median(rounds[1]):.1f} ms, costs of{shown}"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The record of a run. Raises `FlamingoError`."""
    found = {}
    if options.model:
        found[options.model.name] = measured(options.model, options)
    else:
        config = slice_of(own_preset(options.preset), options.layers)
        for scheme in options.schemes.split(","):
            with tempfile.TemporaryDirectory(dir=options.work) as folder:
                found[scheme] = measured(export_slice(config, scheme, Path(folder) / scheme), options)
    costs = {name: Measured.of(rounds) for name, rounds in found.items()}
    for name, rounds in found.items():
        print(told(name, costs[name], rounds), flush=True)
    return {
        "machine": about_machine(), "preset": None if options.model else options.preset, "layers": options.layers,
        "threads": options.threads, "context": options.context, "calls": CALLS,
        "costs": {name: {size: round(cost, 3) for size, cost in each.median.items()} for name, each in costs.items()},
        "ms": {name: {size: [round(value, 3) for value in times] for size, times in rounds.items()}
               for name, rounds in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="openflamingo-3b", help="whose widths; default %(default)s")
    parser.add_argument("--layers", type=int, default=6, help="of the language model; default %(default)s")
    parser.add_argument("--schemes", default=",".join(SCHEMES), help="of weights; default %(default)s")
    parser.add_argument("--model", type=Path, help="a bundle to measure instead")
    parser.add_argument("--backend", default="ort", help="that runs the steps; default %(default)s")
    parser.add_argument("--threads", type=int, default=core_count(), help="default: all cores (%(default)s)")
    parser.add_argument("--context", type=int, default=64, help="tokens before the step; default %(default)s")
    parser.add_argument("--runs", type=int, default=21, help="rounds; default %(default)s")
    parser.add_argument("--work", type=Path, help="folder for the slices; default: the system's for temporary files")
    options = parser.parse_args()
    unknown = set(options.schemes.split(",")) - set(SCHEMES)
    if unknown:
        parser.error(f"--schemes {options.schemes}: {', '.join(sorted(unknown))} unknown; known: {', '.join(SCHEMES)}")
    for name in ("layers", "threads", "context", "runs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}: give 1 or more")
    try:
        record = measure(options)
    except FlamingoError as error:
        sys.exit(str(error))
    print(json.dumps(record))


if __name__ == "__main__":
    main()
