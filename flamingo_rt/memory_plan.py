"""The memory that a bundle takes for a workload, by part, reckoned from its manifest and the sizes of its files; and
the largest workload that fits.

On the CPU it is the most that a process has resident at once (`benchmarks/planned_memory.py` compares both). On a GPU,
weights, cache, media and logits are the sizes of buffers; activations are reckoned as on the CPU, in the type that is
computed in, and were not compared with a GPU's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_rt.bundle import Bundle
from flamingo_rt.contract import (
    ENCODED_AT_ONCE,
    FEATURES,
    GRAPHS,
    LANGUAGE_MODEL,
    LOGITS,
    PIXEL_VALUES,
    RESAMPLER,
    VISION_ENCODER,
    TensorSpec,
    graph_specs,
)
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.parameter_count import reckon_parameters
from flamingo_rt.runtime.activation_memory import FLOAT, prefill_bytes, resampler_bytes, vision_bytes
from flamingo_rt.runtime.batch_memory import most_that_fit
from flamingo_rt.system_memory import readable_bytes

CPU, GPU, JETSON = DEVICES = ("cpu", "gpu", "jetson")  # the last one's GPU uses the machine's memory

# Parts of a plan.
PYTHON, RUNTIME = "python", "runtime"
VISION, RESAMPLING, PREFILL = "vision_activations", "resampler_activations", "prefill_activations"
LOGITS_PART, CACHE, MEDIA = "logits", "cache", "media"

# Measured on x86-64 with Python 3.11 and ONNX Runtime 1.32: the interpreter with the libraries that answering imports;
# the kernels' code and the sessions' graphs; a tokenizer in memory, as times its file.
PYTHON_BYTES, SESSION_BYTES, TOKENIZER_COPIES = 75_000_000, 20_000_000, 13
BLOCK_BYTES = 8  # of each block of quantized numbers: ONNX Runtime packs its scale again, with a sum
LEAST_BLOCK = 16
PICTURES_HELD = 4  # times those encoded at once: decoded ahead, collected, and in one array
LOGITS_HELD = 3  # logits, and the exponentials that the likeliest token's probability takes
MEDIA_HELD = 2  # as the resampler gave them, and stacked for the language model
MOST_ROWS = 1 << 16
ERROR = 0.05  # share that a plan may be off by


@dataclass(frozen=True)
class Workload:
    """A batch: ``rows``, each with ``pictures`` pictures, or clips of ``frames`` frames, and ``tokens`` tokens, of
    which the last ``answer`` are written."""

    rows: int = 1
    pictures: int = 1
    tokens: int = 2
    answer: int = 1
    frames: int = 1

    def __post_init__(self) -> None:
        least = {"rows": 1, "pictures": 0, "tokens": self.answer + 1, "answer": 0, "frames": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise UsageError(f"a workload of {getattr(self, name)} {name}: there must be {value} or more")


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by part, by the names of this module and of the graphs (their weights). ``loading``: the most while the
    graphs are loaded. ``sure`` are bytes without which nothing runs: less than planned by what the planner may be off,
    without Python's own, which are taken already, and without activations on a GPU, which its runtime decides on."""

    parts: Mapping[str, int]
    loading: int
    sure: int

    @property
    def total(self) -> int:
        """The most bytes at once."""
        return max(self.loading, sum(self.parts.values()))

    @property
    def weights(self) -> int:
        """Bytes of the weights of all graphs."""
        return sum(self.parts[name] for name in GRAPHS)


def plan_memory(
    bundle: Bundle, workload: Workload, device: str = CPU, engines: Mapping[str, int] | None = None
) -> MemoryPlan:
    """Reckon the memory of a workload. ``engines`` are the bytes of each graph's engine; without, those of its weights
    in the bundle."""
    on_cpu, config = device == CPU, bundle.config
    specs = graph_specs(config, "float32" if on_cpu else bundle.compute)
    weights = cpu_weights(bundle, workload.tokens) if on_cpu else dict(engines or stored_weights(bundle))
    item = np.dtype(specs[VISION_ENCODER].output(FEATURES).array_dtype).itemsize
    visuals = workload.rows * workload.pictures
    rounds = {name: on_cpu and entry.quantization is not None for name, entry in bundle.graphs.items()}
    at_once, prompt = min(ENCODED_AT_ONCE, visuals * workload.frames), workload.tokens - workload.answer
    latents = config.resampler.latents
    sizes = {
        "B": workload.rows, "C": workload.tokens, "S": max(1, workload.pictures) * latents, "K": 1, "M": visuals,
        "N": visuals * workload.frames,
    }

    def size(*tensors: TensorSpec) -> int:
        return sum(math.prod(tensor.resolve(sizes)) * np.dtype(tensor.array_dtype).itemsize for tensor in tensors)

    def computed(count: int) -> int:
        return count * item // FLOAT

    language, encoder = specs[LANGUAGE_MODEL], specs[VISION_ENCODER]
    pixels = math.prod(encoder.input(PIXEL_VALUES).resolve({"N": at_once})) * FLOAT
    held = size(encoder.output(FEATURES)) + PICTURES_HELD * pixels
    resampled = min(ENCODED_AT_ONCE, visuals)
    parts = {
        **weights,
        PYTHON: PYTHON_BYTES,
        RUNTIME: (SESSION_BYTES if on_cpu else 0) + TOKENIZER_COPIES * _size_of(bundle.tokenizer_path),
        VISION: (computed(vision_bytes(config, at_once, rounds[VISION_ENCODER])) + held) if visuals else 0,
        RESAMPLING: computed(resampler_bytes(config, resampled, workload.frames, rounds[RESAMPLER])) if visuals else 0,
        PREFILL: computed(prefill_bytes(
            config, workload.rows, prompt, prompt, workload.pictures, rounds[LANGUAGE_MODEL])),
        LOGITS_PART: LOGITS_HELD * size(language.output(LOGITS)),
        CACHE: size(*(tensor for tensor in language.inputs if "C" in tensor.shape)),
        MEDIA: (MEDIA_HELD if visuals else 1) * size(*(tensor for tensor in language.inputs if "S" in tensor.shape)),
    }
    if device == GPU:  # the host's memory
        parts |= {PYTHON: 0, RUNTIME: 0}
    loading = sum(parts[name] for name in (*GRAPHS, PYTHON, RUNTIME))
    if on_cpu:
        loading = max(loading, loading - weights[VISION_ENCODER] - weights[RESAMPLER] + _transposed_head(bundle))
        sure = round((1 - ERROR) * (max(loading, sum(parts.values())) - parts[PYTHON]))
    else:
        loading += max(weights.values()) if device == JETSON else 0  # a file, read before the GPU has what is in it
        sure = sum(parts[name] for name in (*GRAPHS, CACHE, MEDIA, LOGITS_PART))
    return MemoryPlan(parts, loading, sure)


def stored_weights(bundle: Bundle) -> dict[str, int]:
    """Bytes of each graph's weights in the bundle's files."""
    files = {name: bundle.graph_path(name).with_name(f"{entry.file}.data") for name, entry in bundle.graphs.items()}
    return {name: _size_of(file) for name, file in files.items()}


def _size_of(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def cpu_weights(bundle: Bundle, tokens: int) -> dict[str, int]:
    """Bytes of each graph's weights as ONNX Runtime has them on a CPU, for rows of ``tokens`` tokens.

    It maps the files, packs each matrix for its kernels and gives the mapped one back. Tables that are only looked up
    in stay mapped, and take the memory of the rows that are read. An embedding in blocks that is the head too stays
    mapped beside the head's packed one. Half precision becomes float32, tables by distance all of it.
    """
    found = {}
    for name, stored in stored_weights(bundle).items():
        entry = bundle.graphs[name]
        upcast = entry.quantization is None and entry.dtype != entry.compute == "float32"
        read = entry.weight_bytes.read(tokens, bundle.config.language.context if upcast else tokens)
        found[name] = min(stored, read) * (2 if upcast else 1)
        if name == LANGUAGE_MODEL and entry.quantization is not None:
            found[name] += _packed_again(bundle)
    return found


def _packed_again(bundle: Bundle) -> int:
    """Bytes that quantized blocks of the language model take beside their own."""
    language, counts = bundle.config.language, reckon_parameters(bundle.config)
    block = _smallest_block(bundle.quantization)
    table = language.vocab_size * language.width * (1 + FLOAT / block) if language.tied_head else 0  # in 8 bits
    return round((counts["language"] + counts["cross_attention"]) / block * BLOCK_BYTES + table)


def _smallest_block(quantization: Any) -> int:
    """The smallest block that a manifest's record names, which anybody may have written; the smallest there is where it
    names none."""
    kinds = quantization.get("blocks") if isinstance(quantization, dict) else None
    described = kinds.values() if isinstance(kinds, dict) else ()
    listed = [kind.get("fitted") for kind in described if isinstance(kind, dict)]
    sizes = [size for sizes in listed if isinstance(sizes, list) for size in sizes if type(size) is int]
    return max(LEAST_BLOCK, min(sizes, default=LEAST_BLOCK))


def _transposed_head(bundle: Bundle) -> int:
    """Bytes of a copy of the embedding that is made while the language model is loaded, where it is the head too."""
    language = bundle.config.language
    dense = bundle.graphs[LANGUAGE_MODEL].quantization is None and language.tied_head
    return FLOAT * language.vocab_size * language.width if dense else 0


@dataclass(frozen=True)
class Fitting:
    """The largest number of something that fits with everything else held: ``most``, None where not even the least
    does, and whether it is the model that allows no more (``limit``) instead of the memory."""

    most: int | None
    limit: bool


def largest_that_fit(
    bundle: Bundle, workload: Workload, shot_tokens: int, memory: int, plan: Callable[[Workload], MemoryPlan]
) -> dict[str, Fitting]:
    """The largest numbers of shots, pictures, rows and tokens that fit into ``memory`` bytes, each with the others
    held. A shot is a picture and ``shot_tokens`` tokens; the pictures of ``workload`` but for the last are its
    shots'."""
    shots = max(0, workload.pictures - 1)
    bare = max(workload.answer + 1, workload.tokens - shots * shot_tokens)
    context, most_pictures = bundle.config.language.context, bundle.config.max_visuals
    by_shots = min(most_pictures - 1, (context - bare) // shot_tokens)
    changed: dict[str, tuple[int, Callable[[int], Workload]]] = {
        "shots": (by_shots, lambda n: replace(workload, pictures=n + 1, tokens=bare + n * shot_tokens)),
        "pictures": (most_pictures, lambda n: replace(workload, pictures=n)),
        "rows": (MOST_ROWS, lambda n: replace(workload, rows=n)),
        "tokens": (context, lambda n: replace(workload, tokens=n, answer=min(workload.answer, n - 1))),
    }
    found = {}
    for name, (limit, changing) in changed.items():
        def fits(count: int, changing: Callable[[int], Workload] = changing) -> bool:
            return plan(changing(count)).total <= memory

        most = most_that_fit(limit, fits)
        none = most == 0 and (name in ("rows", "tokens") or not fits(0))
        found[name] = Fitting(None if none else most, most == limit and not none)
    return found


def check_workload(bundle: Bundle, workload: Workload) -> None:
    """Raise `UsageError` for a workload that the model does not allow, whatever the memory."""
    most, context = bundle.config.max_visuals, bundle.config.language.context
    if workload.pictures > most:
        raise UsageError(f"{workload.pictures} pictures a row: this model allows {most}; ask for fewer shots")
    if workload.tokens > context:
        raise UsageError(f"{workload.tokens:,} tokens a row: the model's context is {context:,}; ask for fewer")


def require_plan(
    bundle: Bundle, workload: Workload, available: int | None, device: str = CPU,
    engines: Mapping[str, int] | None = None,
) -> None:
    """Raise `DataError` where ``available`` bytes cannot hold a workload, which says what would fit; nothing is refused
    where they are not known."""
    def plan(workload: Workload) -> MemoryPlan:
        return plan_memory(bundle, workload, device, engines)

    needed = plan(workload)
    if available is None or needed.sure <= available:
        return
    where = "on the CPU" if device == CPU else "on the GPU"
    smallest = replace(workload, rows=1, pictures=0, tokens=2, answer=min(workload.answer, 1))
    if plan(smallest).sure <= available:
        fitting = _what_would_fit(workload, lambda changed: plan(changed).sure <= available)
    elif bundle.graphs[LANGUAGE_MODEL].quantization is None:
        fitting = "export it with --quantize int8 or int4, take a smaller model, or a machine with more memory"
    else:
        fitting = "take a smaller model, or a machine with more memory"
    rest = needed.sure - needed.weights
    raise DataError(
        f"running {bundle.path} {where} needs at least {readable_bytes(needed.sure)} of memory (its weights "
        f"{readable_bytes(needed.weights)}; for {_described(workload)} {readable_bytes(rest)}), "
        f"{readable_bytes(available)} are available: {fitting}"
    )


def _what_would_fit(workload: Workload, fits: Callable[[Workload], bool]) -> str:
    """The remedy where a smaller workload fits: fewer rows, else fewer pictures, else fewer tokens."""
    for name, word in (("rows", "rows or beams"), ("pictures", "pictures"), ("tokens", "tokens of prompt and answer")):
        def fitting(count: int, name: str = name) -> bool:
            return fits(_with(workload, name, count))

        most = most_that_fit(getattr(workload, name), fitting)
        if most:
            return f"{most:,} {word} would fit; flamingo-rt describe --model BUNDLE --memory SIZE says what else"
    return "less would fit: use fewer rows, shots and tokens"


def _with(workload: Workload, name: str, value: int) -> Workload:
    answer = min(workload.answer, value - 1) if name == "tokens" else workload.answer
    return replace(workload, **{name: value, "answer": answer})


def _described(workload: Workload) -> str:
    rows = "one row" if workload.rows == 1 else f"{workload.rows:,} rows"
    pictures = "one picture" if workload.pictures == 1 else f"{workload.pictures:,} pictures"
    return f"{rows} of {workload.tokens:,} tokens and {pictures}"
