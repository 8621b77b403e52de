"""The interface through which long work reports its progress, to a terminal or to nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Opens a stage by its name and size (in bytes or steps, 0 when unknown).

    The context yields a function to call with an amount each time the stage advances.
    """

    def __call__(self, stage: str, total: int) -> AbstractContextManager[Advance]: ...


@contextmanager
def silent(stage: str, total: int) -> Iterator[Advance]:
    """A `Progress` that reports to nobody."""
    yield lambda amount: None
