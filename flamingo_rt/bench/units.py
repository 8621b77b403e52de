"""Numbers as people read them. Decimal prefixes throughout: 1 GB is 10⁹ bytes."""

from __future__ import annotations

from flamingo_rt.bench.rates import Rates
from flamingo_rt.bench.results import DecodeResult, Report, Stage
from flamingo_rt.printable import printable

PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
# Distributions behind a backend; those that are not installed are left out.
RUNTIMES = {
    "ort": ("onnxruntime", "onnxruntime-gpu"),  # whichever is installed
    "torch": ("torch",), "torch-cuda": ("torch",), "tensorrt": ("tensorrt", "tensorrt-rtx-cu13"),
    "ort-cuda": ("onnxruntime-gpu",),
    "ort-tensorrt-rtx": ("onnxruntime", "onnxruntime-ep-nv-tensorrt-rtx-cu13"),
}
STAGES = {"images": "image decode, resize", "vision": "vision encoder", "resampler": "resampler", "prefill": "prefill"}


def scaled(value: float, unit: str) -> str:
    """Three digits with a prefix: ``5.68 GB``."""
    for factor, prefix in PREFIXES:
        if value >= factor * 0.9995:
            return f"{_three_digits(value / factor)} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def milliseconds(value: float) -> str:
    """``0.557 ms``, ``44.2 ms``, ``12.3 s``."""
    return f"{_three_digits(value / 1e3)} s" if value >= 999.5 else f"{_three_digits(value)} ms"


def _three_digits(value: float) -> str:
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3
    return f"{value:.{digits}f}"


def products_rate(rates: Rates) -> str:
    """FLOPs per second, or nothing where they could not be measured."""
    return scaled(rates.flops, "FLOP/s") if rates.flops is not None else ""


def stage_name(stage: Stage) -> str:
    """``prefill, 64 tokens``."""
    return STAGES[stage.name] + (f", {stage.tokens} tokens" if stage.tokens is not None else "")


def decode_name(result: DecodeResult) -> str:
    """``decode, context 64``, with the batch if it is not 1."""
    return f"decode, context {result.context}" + (f", batch {result.batch}" if result.batch > 1 else "")


def model_line(report: Report) -> str:
    """Model, types, size, backend; one line, whatever the model is called."""
    model = report.model
    kinds = sorted({model.quantization[graph] or dtype for graph, dtype in model.dtype.items()})
    size = [scaled(model.bytes, "B")] if model.bytes is not None else []
    threads = f"{model.threads} thread{'s' if model.threads > 1 else ''}" if model.threads else "all cores"
    return ", ".join([printable(model.name), " and ".join(kinds), *size, f"backend {model.backend}", threads])


def machine_line(report: Report) -> str:
    """Processor, cores, memory, and accelerators."""
    machine = report.machine
    memory = [scaled(machine.memory_bytes, "B")] if machine.memory_bytes else []
    cores = f"{machine.cores} core" + ("s" if machine.cores > 1 else "")
    gpus = [gpu.name for gpu in machine.gpus or ()]
    board = [machine.jetson.board, machine.jetson.power_mode or ""] if machine.jetson else []
    return ", ".join(printable(part) for part in [machine.cpu, cores, *memory, *gpus, *board] if part)


def software_line(report: Report) -> str:
    """System, Python, the libraries that matter."""
    machine = report.machine
    names = ["flamingo-rt", "numpy", *RUNTIMES.get(report.model.backend, ())]
    versions = [f"{name} {machine.libraries[name]}" for name in names if machine.libraries.get(name)]
    return ", ".join([machine.system, f"Python {machine.python}", *versions])
