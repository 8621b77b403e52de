"""The seam between the decode loop and a backend: named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import numpy as np

from flamingo_rt.cache import Cache
from flamingo_rt.contract import GraphSpec


class GreedySteps(Protocol):
    """Steps of one token a row, each of which takes what the one before chose; the host need not see it first."""

    def begin(self, tokens: np.ndarray) -> None:
        """The tokens that the first step takes, int64 [B]."""
        ...

    def launch(self, lengths: np.ndarray) -> None:
        """Begin one step more; ``lengths`` int64 [B] are the tokens cached in each row when it runs."""
        ...

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """What the oldest step that was not taken has chosen, int64 [B], and the log-probabilities, float32 [B]. Waits
        for that step, not for those behind it."""
        ...

    def finish(self) -> None:
        """Wait for what is under way; nothing of it is taken."""
        ...


class Engine(Protocol):
    """The three graphs of `flamingo_rt.contract`, ready to run."""

    name: str
    # With the cache in place, whatever form an engine's own graphs have.
    specs: dict[str, GraphSpec]
    # Whether several rows of a filled cache can be continued with several tokens each in one call.
    continues_batches: bool
    # Whether `bind` takes pixel values in device memory: what `flamingo_rt.device_arrays` can say where it lies.
    reads_device_arrays: bool
    # How many greedy steps are begun before it is known what the one before them chose; 0 where a step is done as soon
    # as it was begun, and one too many would cost time.
    steps_ahead: int

    def available_bytes(self) -> int | None:
        """Free memory of a device that has its own, where this engine computes; None where that is the machine's."""
        ...

    def device_probe(self) -> Any | None:
        """What measures how fast that device is (`flamingo_rt.bench.rates.Measured`); None where it is the CPU."""
        ...

    def cache(self, rows: int, capacity: int) -> Cache:
        """A cache of its own with room for ``capacity`` tokens in each of ``rows`` rows."""
        ...

    def bind(
        self, graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], constant: Collection[str] = ()
    ) -> Callable[[], None]:
        """A call that reads ``inputs`` and writes ``outputs`` each time it is made.

        They are numpy arrays, C-contiguous, named, typed and shaped as ``specs`` says, and are looked at when the call
        is made: change their content, not themselves. Those named ``constant`` never change: an engine may look at them
        once. Past and present are what `cache` gave, the same for both; an engine takes numpy arrays for them too.
        Other outputs may be left out: they stay where they are computed.
        """
        ...

    def greedy_steps(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], constant: Collection[str] = ()
    ) -> GreedySteps:
        """Steps of the language model, with arrays as for `bind`: one token a row, and of the outputs the greedy choice
        alone beside present. ``input_ids`` and ``cache_length`` are set by the steps themselves."""
        ...
