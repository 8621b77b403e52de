"""What engines whose buffers are numpy arrays have in common: a cache in host memory, and greedy steps one by one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np

from flamingo_rt.cache import HostCache
from flamingo_rt.contract import LANGUAGE_MODEL, NEXT_LOGPROB, NEXT_TOKEN, GraphSpec

Arrays = Mapping[str, np.ndarray]


class HostEngine:
    """The part of `flamingo_rt.runtime.engine.Engine` that does not depend on what computes."""

    bind: Callable[..., Callable[[], None]]  # a subclass's method, as `Engine.bind`
    steps_ahead = 0  # a call returns when its step is done
    continues_batches = False
    reads_device_arrays = False

    def __init__(self, specs: dict[str, GraphSpec]) -> None:
        self.specs = specs

    def available_bytes(self) -> None:
        """It computes in the machine's memory."""

    def device_probe(self) -> None:
        """It computes on the CPU."""

    def cache(self, rows: int, capacity: int) -> HostCache:
        """In host memory, where the kernels read and write it."""
        return HostCache(self.specs[LANGUAGE_MODEL], rows, capacity)

    def greedy_steps(self, inputs: Arrays, outputs: Arrays, constant: Collection[str] = ()) -> HostGreedySteps:
        """As `Engine.greedy_steps`."""
        return HostGreedySteps(self.bind(LANGUAGE_MODEL, inputs, outputs, constant), inputs, outputs)


class HostGreedySteps:
    """`flamingo_rt.runtime.engine.GreedySteps` over a bound step: it is done when it was launched."""

    def __init__(self, run: Callable[[], None], inputs: Arrays, outputs: Arrays) -> None:
        self._run, self._tokens, self._lengths = run, inputs["input_ids"], inputs["cache_length"]
        self._chosen, self._logprobs = outputs[NEXT_TOKEN], outputs[NEXT_LOGPROB]

    def begin(self, tokens: np.ndarray) -> None:
        """As `GreedySteps.begin`."""
        self._tokens[:, 0] = tokens

    def launch(self, lengths: np.ndarray) -> None:
        """As `GreedySteps.launch`."""
        self._lengths[:] = lengths
        self._run()
        self._tokens[:] = self._chosen

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """As `GreedySteps.take`."""
        return self._chosen[:, 0].copy(), self._logprobs[:, 0].copy()

    def finish(self) -> None:
        """As `GreedySteps.finish`."""
