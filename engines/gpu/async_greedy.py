"""Greedy steps that run ahead of the host: each step takes the tokens of the previous one from device memory, and the
host reads them while the next step runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flamingo_rt.contract import CACHE_LENGTH, INPUT_IDS, NEXT_LOGPROB, NEXT_TOKEN
from flamingo_rt.engines.gpu.bound_arrays import BoundArrays, Launch
from flamingo_rt.engines.gpu.cuda import Cuda
from flamingo_rt.errors import DataError


@dataclass
class _Slot:
    """Pinned memory of one step under way, and the event behind it."""

    lengths: np.ndarray
    chosen: np.ndarray
    logprobs: np.ndarray
    done: Any = None


class AsyncGreedySteps:
    """`flamingo_rt.backend.GreedySteps` over a bound step, whose tokens and lengths it moves itself."""

    def __init__(self, cuda: Cuda, arrays: BoundArrays, launch: Launch, ahead: int) -> None:
        """``launch`` puts the step bound to ``arrays`` on the stream, without copies of inputs and outputs
        (``copies=False``). At most ``ahead`` steps are begun before the previous one is taken. Call it within
        `Cuda.current`.

        Raises `DataError` for a graph that reads tokens in another type than it writes them.
        """
        dtypes = arrays.graph.dtypes
        if dtypes[INPUT_IDS] != dtypes[NEXT_TOKEN]:
            raise DataError(
                f"the language model reads tokens as {dtypes[INPUT_IDS]} and writes them as {dtypes[NEXT_TOKEN]}: "
                "build its engines again, with one version of TensorRT"
            )
        self._cuda, self._arrays, self._launch = cuda, arrays, launch
        self._lengths = arrays.host[CACHE_LENGTH]  # a launch may read it
        rows = len(self._lengths)
        self._first = cuda.pinned((rows, 1), dtypes[INPUT_IDS])
        self._free = [
            _Slot(
                cuda.pinned((rows,), dtypes[CACHE_LENGTH]), cuda.pinned((rows, 1), dtypes[NEXT_TOKEN]),
                cuda.pinned((rows, 1), dtypes[NEXT_LOGPROB]),
            )
            for _ in range(ahead + 1)
        ]
        self._under_way: deque[_Slot] = deque()
        self._begun = False

    def renew(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Take new content of the constant inputs; no step may be under way."""
        with self._cuda.current():
            self._arrays.renew(inputs)

    def begin(self, tokens: np.ndarray) -> None:
        """See `GreedySteps.begin`."""
        self._first[:, 0] = tokens
        self._begun = False

    def launch(self, lengths: np.ndarray) -> None:
        """See `GreedySteps.launch`."""
        slot, addresses, cuda = self._free.pop(), self._arrays.addresses, self._cuda
        self._under_way.append(slot)
        self._lengths[:] = slot.lengths[:] = lengths
        with cuda.current():
            if self._begun:
                cuda.copy(addresses[INPUT_IDS], addresses[NEXT_TOKEN], self._first.nbytes)
            else:
                cuda.upload(addresses[INPUT_IDS], self._first)
            self._begun = True
            cuda.upload(addresses[CACHE_LENGTH], slot.lengths)
            self._launch()
            cuda.download(slot.chosen, addresses[NEXT_TOKEN])
            cuda.download(slot.logprobs, addresses[NEXT_LOGPROB])
            slot.done = cuda.mark()

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """See `GreedySteps.take`."""
        slot = self._under_way.popleft()
        self._free.append(slot)
        with self._cuda.current():
            slot.done.synchronize()
        return slot.chosen[:, 0].astype(np.int64), slot.logprobs[:, 0].copy()

    def finish(self) -> None:
        """See `GreedySteps.finish`."""
        self._free += self._under_way
        self._under_way.clear()
        with self._cuda.current():
            self._cuda.synchronize()
