"""What the runtime's defaults gain: block sizes of quantized matrices, spinning threads, and the number of threads.

    python -m benchmarks.choices [--preset openflamingo-3b] [--model BUNDLE] [--runs 15] [--results benchmarks/results]

Everything is measured in turns in one run, so that what drifts on the machine drifts for all of it: random matrices of
the preset's shapes, in blocks of 32 to 256 numbers of 8 and of 4 bits, times 1, 8 and 64 tokens; and, with ``--model``,
one token of its language model with and without spinning, and on one thread. Prints medians and quartiles; the last
line is JSON with all samples, which ``--results`` also writes as a dated file. Needs the extra ``export``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from benchmarks.comparison.comparison_tables import table
from benchmarks.comparison.machine_names import about_machine, machine_name
from benchmarks.comparison.result_file import FORMAT, result_path, write_results
from flamingo_rt.bench.bandwidth import BandwidthProbe
from flamingo_rt.bench.statistics import Spread, sample
from flamingo_rt.bundle import Bundle, read_bundle
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import LANGUAGE_MODEL, layer_parts, past_name, present_name
from flamingo_rt.cores import core_count
from flamingo_rt.engines.ort import OrtBackend
from flamingo_rt.errors import FlamingoError
from flamingo_rt.export.quantization.matmul_nbits import ACCURACY_LEVEL, DOMAIN
from flamingo_rt.export.quantization.quantization_options import Blocks
from flamingo_rt.presets import preset

BITS, BLOCK_SIZES, TOKENS = (8, 4), (256, 128, 64, 32), (1, 8, 64)
LAYERS = 2  # of matrices: more than a processor's caches hold
CONTEXT = 64  # tokens in the cache of a measured step
CALLS = 4  # of a run; the first is not counted, for the threads of what ran before may still be spinning
Shape = tuple[int, int]  # of a matrix: numbers a row, rows
Samples = dict[str, list[float]]


def matrices(config: FlamingoConfig) -> dict[str, list[Shape]]:
    """The matrices that a token is multiplied with, by kind: those of `LAYERS` layers with gated cross-attention, and
    the head."""
    language, cross = config.language, config.cross_attention
    width, inner = language.width, cross.heads * cross.head_width
    own = language.heads * language.head_width
    fused = own + 2 * language.kv_heads * language.head_width  # queries, keys and values are one matrix
    attention = [(width, fused), (own, width), (width, inner), (inner, width)]
    wide = cross.ff_multiplier * width
    up = language.ff_width * (2 if language.activation == "swiglu" else 1)  # the gate's is part of the same matrix
    feed_forward = [(width, up), (language.ff_width, width), (width, wide), (wide, width)]
    head = [(width, language.vocab_size)]
    return {"attention": attention * LAYERS, "feed_forward": feed_forward * LAYERS, "head": head}


def block_session(shapes: Sequence[Shape], blocks: Blocks, threads: int) -> onnxruntime.InferenceSession:
    """A session that multiplies tokens with random matrices; its inputs are named by their width."""
    rng, nodes, weights, outputs = np.random.default_rng(0), [], [], []
    for number, (width, rows) in enumerate(shapes):
        packed_shape, scales_shape = blocks.shapes(rows, width)
        arrays = {f"packed{number}": rng.integers(0, 256, packed_shape, dtype=np.uint8),
                  f"scales{number}": rng.uniform(1e-3, 2e-3, scales_shape).astype(np.float32)}
        weights += [numpy_helper.from_array(array, name) for name, array in arrays.items()]
        nodes.append(helper.make_node(
            "MatMulNBits", [f"x{width}", *arrays], [f"y{number}"], domain=DOMAIN, K=width, N=rows, bits=blocks.bits,
            block_size=blocks.block, accuracy_level=ACCURACY_LEVEL,
        ))
        outputs.append(helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, ["T", rows]))
    inputs = [helper.make_tensor_value_info(f"x{width}", TensorProto.FLOAT, ["T", width])
              for width in sorted({width for width, _ in shapes})]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(helper.make_graph(nodes, "blocks", inputs, outputs, weights), opset_imports=opsets)
    model.ir_version = 10
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def timed(call: Callable[[], Any]) -> Callable[[], Mapping[str, list[float]]]:
    """A run of `CALLS` calls, one after the other."""
    def run() -> Mapping[str, list[float]]:
        times = []
        for _ in range(CALLS):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
        return {"ms": times[1:]}

    return run


def product(session: onnxruntime.InferenceSession, tokens: int) -> Callable[[], Any]:
    """All products of a session with ``tokens`` random tokens."""
    rng = np.random.default_rng(tokens)
    inputs = {value.name: rng.standard_normal((tokens, value.shape[1]), dtype=np.float32)
              for value in session.get_inputs()}
    return lambda: session.run(None, inputs)


def measure_blocks(config: FlamingoConfig, threads: int, runs: int) -> dict[str, Samples]:
    """Milliseconds by kind of matrices, and by bits, block and tokens."""
    found = {}
    for kind, shapes in matrices(config).items():
        measurements = {}
        for bits in BITS:
            for size in BLOCK_SIZES:
                if any(width % size for width, _ in shapes):
                    continue
                session = block_session(shapes, Blocks(bits, size), threads)
                for count in TOKENS:
                    measurements[f"{bits} bits, block {size}, T={count}"] = timed(product(session, count))
        samples = sample(measurements, runs, 1, float("inf"))
        found[kind] = {name: times["ms"] for name, times in samples.items()}
    return found


def step(bundle: Bundle, threads: int, spin: bool) -> Callable[[], None]:
    """A token of a bundle's language model behind `CONTEXT` others. Raises `DataError`."""
    config = bundle.config
    graphs = {LANGUAGE_MODEL: bundle.graph_path(LANGUAGE_MODEL)}
    backend = OrtBackend(graphs, config, threads, spin=spin, dtype=bundle.compute, cache=bundle.cache_form)
    spec, rng = backend.specs[LANGUAGE_MODEL], np.random.default_rng(0)
    sizes = {"B": 1, "T": 1, "K": 1, "S": config.resampler.latents, "C": CONTEXT + 1}
    inputs = {each.name: rng.standard_normal(each.resolve(sizes)).astype(each.dtype) for each in spec.inputs}
    for name, value in (("input_ids", 1), ("cache_length", CONTEXT), ("media_index", 1), ("logits_index", 0)):
        inputs[name][:] = value
    outputs = {present_name(*part): inputs[past_name(*part)] for part in layer_parts(config.language.layers)}
    outputs["logits"] = np.empty(spec.output("logits").resolve(sizes), dtype=np.float32)
    return backend.bind(LANGUAGE_MODEL, inputs, outputs)


def measure_threads(path: Path, threads: int, runs: int) -> Samples:
    """Milliseconds a token by number of threads and whether they spin. Raises `DataError`."""
    bundle = read_bundle(path)
    counts = [(threads, True), (threads, False), *([(1, True)] if threads > 1 else [])]
    measurements = {}
    for count, spin in counts:
        name = f"{count} thread{'s' if count > 1 else ''}, {'spinning' if spin else 'not spinning'}"
        measurements[name] = timed(step(bundle, count, spin))
    samples = sample(measurements, runs, 1, float("inf"))
    return {name: times["ms"] for name, times in samples.items()}


def blocks_table(samples: Samples, title: str) -> str:
    """A line for each number of bits and size of blocks; behind each time how it is to that of the largest blocks."""
    spreads = {tuple(name.split(", ")): Spread.of(times) for name, times in samples.items()}
    first: dict[tuple[str, str], float] = {}
    for (bits, _, count), spread in spreads.items():
        first.setdefault((bits, count), spread.median)
    rows = [
        [bits, block, *(f"{told(spreads[bits, block, f'T={count}'])}, "
                        f"{spreads[bits, block, f'T={count}'].median / first[bits, f'T={count}']:.2f}"
                        for count in TOKENS)]
        for bits, block in dict.fromkeys(name[:2] for name in spreads)
    ]
    return table([title, "", *(f"T={count}, ms" for count in TOKENS)], rows)


def threads_table(samples: Samples, title: str) -> str:
    """Times of a token, and how each is to the first."""
    spreads = {name: Spread.of(times) for name, times in samples.items()}
    first = next(iter(spreads.values())).median
    return table([title, "ms", "times the first"],
                 [[name, told(spread), f"{spread.median / first:.2f}"] for name, spread in spreads.items()])


def told(spread: Spread) -> str:
    """Median and quartiles."""
    return f"{spread.median:.4g} ({spread.lower:.4g} to {spread.upper:.4g})"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The record of a run. Raises `FlamingoError`."""
    config, rates = preset(options.preset), []
    with BandwidthProbe(options.threads) as probe:
        rates.append(probe.read()[0])
        blocks = measure_blocks(config, options.threads, options.runs)
        rates.append(probe.read()[0])
        threads = measure_threads(options.model, options.threads, options.runs) if options.model else {}
        rates.append(probe.read()[0])
    for kind, samples in blocks.items():
        print(blocks_table(samples, f"{kind.replace('_', '-')} matrices of {options.preset}"), end="\n\n", flush=True)
    if threads:
        print(threads_table(threads, f"a token of {options.model.name}"), end="\n\n")
    print(f"memory is read at {min(rates) / 1e9:.1f} to {max(rates) / 1e9:.1f} GB/s between these")
    return {
        "format": FORMAT, "date": options.date, "preset": options.preset, "machine": about_machine(),
        "versions": {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__, "numpy": np.__version__},
        "threads": options.threads, "layers": LAYERS, "context": CONTEXT, "bandwidth": [round(rate) for rate in rates],
        "model": options.model.name if options.model else None,
        "blocks_ms": {kind: rounded(samples) for kind, samples in blocks.items()}, "threads_ms": rounded(threads),
    }


def rounded(samples: Samples) -> Samples:
    return {name: [round(value, 4) for value in times] for name, times in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="openflamingo-3b", help="whose matrices; default %(default)s")
    parser.add_argument("--model", type=Path, help="a bundle; without it threads are not measured")
    parser.add_argument("--threads", type=int, default=core_count(), help="default: all cores (%(default)s)")
    parser.add_argument("--runs", type=int, default=15, help=f"of {CALLS} calls; default %(default)s")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="write DATE-MACHINE-PRESET-choices.json there")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="of the file; default: today")
    options = parser.parse_args()
    for name in ("threads", "runs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}: give 1 or more")
    try:
        record = measure(options)
    except FlamingoError as error:
        raise SystemExit(str(error)) from error
    if options.results:
        path = result_path(options.results, options.date, machine_name(record["machine"]), f"{options.preset}-choices")
        write_results(path, record)
        print(f"written to {path}")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
