"""The cores this process may use."""

from __future__ import annotations

import os
from numbers import Integral

from flamingo_rt.errors import UsageError


def core_count() -> int:
    """Cores this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(threads: int | None) -> None:
    """Raise `UsageError` unless ``threads`` is from 1 to the number of cores, or None for all of them.

    More threads than cores would spin while they wait for each other, for minutes.
    """
    cores = core_count()
    whole = isinstance(threads, Integral) and not isinstance(threads, bool)
    if threads is not None and not (whole and 1 <= threads <= cores):
        raise UsageError(
            f"threads is {threads!r}; it must be an integer from 1 to {cores}: this process may use {cores} "
            f"core{'s' if cores > 1 else ''}"
        )
