"""Wall-clock time by stage, and counts of a generation's steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class StageTimer:
    """Adds up milliseconds under a stage's name."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body; repeated stages add up."""
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = (time.perf_counter() - start) * 1e3
            self.milliseconds[name] = self.milliseconds.get(name, 0.0) + elapsed


@dataclass
class Counts:
    """Counters of a generation; see `flamingo_rt.runtime.generation_options.GenerationResult`."""

    steps: int = 0
    drafted: int = 0
    accepted: int = 0
