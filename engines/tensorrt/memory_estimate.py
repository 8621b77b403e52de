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
# Memory of a compilation: TensorRT's libraries, and copies of a graph's weights (`benchmarks/engine_memory.py` measures
# both with TensorRT-RTX 1.7).
BUILDER_BYTES, WEIGHT_COPIES = 200_000_000, 2.2


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes of memory. ``building`` is the most that compiling takes at once of the machine's memory, with the GPU's
    part where they are the same (Jetson). ``running`` is for the weights, inputs, logits and cache at the limits, of
    which ``cache`` is for the self-attention cache. Activations inside the engines are not counted."""

    building: int
    running: int
    cache: int


def memory_needs(
    config: FlamingoConfig, weights: Mapping[str, int], limits: Limits, compute: str, cache_form: str,
    shared: bool = False,
) -> MemoryNeeds:
    """Estimate the memory for graphs with these bytes of ``weights``, by name. ``shared``: the GPU uses the machine's
    memory."""
    largest = max(weights.values())
    building = BUILDER_BYTES + math.ceil((WEIGHT_COPIES + (1 if shared else 0)) * largest)
    spec = graph_specs(config, compute, cache_form)[LANGUAGE_MODEL]
    ranges = size_ranges(config, limits, cache_form)[LANGUAGE_MODEL][PREFILL]
    sizes = {letter: found.max for letter, found in ranges.items()}

    def tensor_bytes(tensors: tuple[TensorSpec, ...]) -> int:
        return sum(math.prod(tensor.resolve(sizes)) * ITEM_BYTES[tensor.dtype] for tensor in tensors)

    cache = tensor_bytes(tuple(tensor for tensor in spec.inputs if "C" in tensor.shape))
    tensors = tensor_bytes((*spec.inputs, spec.output(LOGITS)))
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
    """The remedy for a GPU with ``memory`` bytes: a cache of less capacity, where that suffices."""
    rest = memory - (needs.running - needs.cache)
    capacity = limits.capacity * rest // needs.cache
    if 0 < capacity < limits.capacity:
        return f"--capacity {capacity} would fit, or fewer rows (--max-batch), or an export in a lower precision"
    return "export in a lower precision or take a smaller model; --capacity and --max-batch make the cache smaller"


def out_of_memory(errors: list[str]) -> bool:
    """Whether TensorRT's errors say that memory ran out."""
    texts = ("out of memory", "outofmemory", "memoryallocation", "bad_alloc", "allocate memory", "insufficient memory")
    return any(text in error.lower() for error in errors for text in texts)
