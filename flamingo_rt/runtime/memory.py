"""How much memory a batch needs and how much there is, before it is asked for: a refusal instead of a killed process.

What there is, is known on Linux: the kernel's own estimate, and the limits of control groups (containers). Elsewhere
nothing is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flamingo_rt.contract import LANGUAGE_MODEL, RESAMPLER, GraphSpec
from flamingo_rt.errors import DataError

MEMINFO, OWN_GROUPS, GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Files of a control group, version 2 and 1: limit, use, and what of the use is a cache of files that can be dropped.
_VERSION_2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def check_memory(specs: dict[str, GraphSpec], rows: int, capacity: int, visuals: int, kind: str = "rows") -> None:
    """Raise `DataError` when ``rows`` rows of ``capacity`` tokens and at most ``visuals`` visuals each need more memory
    than there is; it says how many would fit. ``kind`` is what the caller calls them: rows or beams."""
    available = available_bytes()
    needed = needed_bytes(specs, rows, capacity, visuals)
    if available is None or needed <= available:
        return
    fitting = available // needed_bytes(specs, 1, capacity, visuals)
    if fitting:
        remedy = f"{fitting} of these {kind} would fit: ask for no more at a time"
    else:
        least = needed_bytes(specs, 1, 0, visuals)
        tokens = (available - least) // (needed_bytes(specs, 1, 1, visuals) - least)
        remedy = f"{max(0, tokens):,} tokens would fit: use fewer shots, a smaller max_new_tokens or a smaller model"
    batch = f"{rows} {kind}" if rows > 1 else "one row"
    raise DataError(
        f"{batch} of {capacity:,} tokens cannot be kept in memory: cache and pictures take {_readable(needed)}, "
        f"{_readable(available)} are available; {remedy}"
    )


def needed_bytes(specs: dict[str, GraphSpec], rows: int, capacity: int, visuals: int) -> int:
    """Bytes of what the language model reads and writes: the cache, media and logits of a batch."""
    spec, latents = specs[LANGUAGE_MODEL], specs[RESAMPLER].outputs[0].shape[2]
    sizes = {"B": rows, "C": capacity, "T": capacity, "S": max(1, visuals) * latents, "K": 1}
    tensors = (*spec.inputs, spec.output("logits"))  # every other output is written over an input
    return sum(math.prod(tensor.resolve(sizes)) * np.dtype(tensor.array_dtype).itemsize for tensor in tensors)


def available_bytes() -> int | None:
    """Memory that this process can still get, or None where that is not known."""
    return min((*_free_of_the_machine(), *_free_of_the_groups()), default=None)


def _free_of_the_machine() -> Iterator[int]:
    for line in _lines(MEMINFO):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            yield int(value.split()[0]) * 1024


def _free_of_the_groups() -> Iterator[int]:
    """What the control groups that this process is in leave it, each of them and its parents."""
    for line in _lines(OWN_GROUPS):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, files = GROUPS, _VERSION_2
        elif "memory" in controllers.split(","):
            top, files = GROUPS / "memory", _VERSION_1
        else:
            continue
        group = top / path.strip("/")
        # In a container the path may be the host's, and only the top is there.
        for folder in (group, *group.parents):
            yield from _free_of_group(folder, *files)
            if folder == top:
                break


def _free_of_group(folder: Path, limit: str, used: str, droppable: tuple[str, ...]) -> Iterator[int]:
    allowed, current = (_lines(folder / name)[:1] for name in (limit, used))
    if allowed and current and allowed[0].isdigit():  # "max" is no limit
        statistics = dict(line.split() for line in _lines(folder / "memory.stat"))
        yield max(0, int(allowed[0]) - int(current[0]) + sum(int(statistics.get(name, 0)) for name in droppable))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def _readable(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
