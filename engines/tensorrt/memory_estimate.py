"""Estimate of the memory that compiling and running a model's graphs takes, so that too little is refused early."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import LANGUAGE_MODEL, LOGITS, PREFILL, Limits, TensorSpec, graph_specs, size_ranges
from flamingo_rt.errors import DataError
from flamingo_rt.system_memory import readable_bytes

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8}
# What a compilation takes: TensorRT's libraries, and the weights of a graph several times over
# (`benchmarks/engine_memory.py` measures it with TensorRT-RTX 1.7).
BUILDER_BYTES, WEIGHT_COPIES = 200_000_000, 2.2


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes: ``building`` takes the most at once, of the machine's memory, and where that is the GPU's too (Jetson), of
    both; ``running`` takes the engines, and ``cache`` of it the self-attention cache at the limits. What layers compute
    on their way comes on top of ``running``."""

    building: int
    running: int
    cache: int


def memory_needs(
    config: FlamingoConfig, weights: Mapping[str, int], limits: Limits, compute: str, cache_form: str,
    shared: bool = False,
) -> MemoryNeeds:
    """``weights``: bytes of each graph's. ``shared``: the GPU has the machine's memory for its own."""
    largest = max(weights.values())
    building = BUILDER_BYTES + math.ceil((WEIGHT_COPIES + (1 if shared else 0)) * largest)
    spec = graph_specs(config, compute, cache_form)[LANGUAGE_MODEL]
    ranges = size_ranges(config, limits, cache_form)[LANGUAGE_MODEL][PREFILL]
    sizes = {letter: found.max for letter, found in ranges.items()}

    def taken(tensors: tuple[TensorSpec, ...]) -> int:
        return sum(math.prod(tensor.resolve(sizes)) * ITEM_BYTES[tensor.dtype] for tensor in tensors)

    cache = taken(tuple(tensor for tensor in spec.inputs if "C" in tensor.shape))
    tensors = taken((*spec.inputs, spec.output(LOGITS)))
    return MemoryNeeds(building, sum(weights.values()) + tensors, cache)


def check_building(needs: MemoryNeeds, available: int | None, compute: str) -> None:
    """Raise `DataError` when compiling takes more memory than there is."""
    if available is None or needs.building <= available:
        return
    lower = "" if compute != "float32" else ", or export with --compute fp16, which takes half of it"
    raise DataError(
        f"compiling takes about {readable_bytes(needs.building)} of memory, {readable_bytes(available)} are available: "
        f"stop other programs, add swap{lower}; --force tries all the same"
    )


def check_running(needs: MemoryNeeds, limits: Limits, memory: int) -> None:
    """Raise `DataError` when a GPU with ``memory`` bytes cannot hold the engines and their buffers."""
    if needs.running > memory:
        raise DataError(
            f"the engines and their buffers take {readable_bytes(needs.running)}, of which the cache "
            f"{readable_bytes(needs.cache)}; the GPU has {readable_bytes(memory)}: "
            f"{what_would_fit(needs, limits, memory)}; --force builds all the same"
        )


def what_would_fit(needs: MemoryNeeds, limits: Limits, memory: int) -> str:
    """The remedy for a GPU with ``memory`` bytes: the cache grows with its capacity and the rows."""
    rest = memory - (needs.running - needs.cache)
    capacity = limits.capacity * rest // needs.cache
    if 0 < capacity < limits.capacity:
        return f"--capacity {capacity} would fit, or fewer rows (--max-batch), or an export in a lower precision"
    return "export in a lower precision or take a smaller model; --capacity and --max-batch make the cache smaller"


def out_of_memory(errors: list[str]) -> bool:
    """Whether TensorRT's errors say that memory ran out."""
    marks = ("out of memory", "outofmemory", "memoryallocation", "bad_alloc", "allocate memory", "insufficient memory")
    return any(mark in error.lower() for error in errors for mark in marks)
