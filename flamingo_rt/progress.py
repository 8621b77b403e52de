"""How long work tells how far it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Entered for each stage, with its name and size (bytes or steps, 0 where nobody knows); what it gives is called as
    the stage advances."""

    def __call__(self, stage: str, total: int) -> AbstractContextManager[Advance]: ...


@contextmanager
def silent(stage: str, total: int) -> Iterator[Advance]:
    """Nobody listens."""
    yield lambda amount: None
