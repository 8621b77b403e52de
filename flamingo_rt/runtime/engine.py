"""The seam between the decode loop and a backend: named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from flamingo_rt.contract import GraphSpec


class Engine(Protocol):
    """The three graphs of `flamingo_rt.contract`, ready to run."""

    name: str
    specs: dict[str, GraphSpec]

    def bind(
        self, graph: str, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> Callable[[], None]:
        """A call that reads ``inputs`` and writes ``outputs`` each time it is made.

        Arrays are C-contiguous, named, typed and shaped as ``specs`` says, and are looked at when the call is made:
        change their content, not themselves. A past and its present may be the same memory.
        """
        ...
