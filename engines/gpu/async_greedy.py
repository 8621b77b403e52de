"""Greedy steps that run ahead of the host: each step takes the tokens of the previous one from device memory, and the
host reads them while the next step runs.

What a step copies from and to the host lies in an entry of a ring: pinned memory, and a CUDA event that is recorded
behind the step and waited for when the host wants its result. Entries are made once and used again, in turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flamingo_rt.contract import CACHE_LENGTH, INPUT_IDS, NEXT_LOGPROB, NEXT_TOKEN
from flamingo_rt.engines.gpu.bound_arrays import BoundArrays, BoundGraph
from flamingo_rt.engines.gpu.cuda import Cuda
from flamingo_rt.errors import DataError


@dataclass
class _RingEntry:
    """Pinned memory of one step under way, and the event behind it."""

    lengths: np.ndarray
    tokens: np.ndarray
    logprobs: np.ndarray
    done: Any


class AsyncGreedySteps:
    """`flamingo_rt.backend.GreedySteps` over a bound graph, whose tokens and lengths it copies itself."""

    def __init__(self, cuda: Cuda, arrays: BoundArrays, graph: BoundGraph, ahead: int) -> None:
        """``graph`` is the language model bound to ``arrays``, which are without copies (``copies=False``). At most
        ``ahead`` steps are enqueued before the result of the previous one is asked for. Call it within `Cuda.current`.

        Raises `DataError` for a graph that reads tokens in another type than it writes them, and when memory cannot be
        pinned.
        """
        dtypes = arrays.interface.dtypes
        if dtypes[INPUT_IDS] != dtypes[NEXT_TOKEN]:
            raise DataError(
                f"the language model reads tokens as {dtypes[INPUT_IDS]} and writes them as {dtypes[NEXT_TOKEN]}: "
                "build its engines again, with one version of TensorRT"
            )
        self._cuda, self._arrays, self._graph = cuda, arrays, graph
        self._lengths = arrays.host[CACHE_LENGTH]  # `ClassicLanguageModel` reads it
        rows = len(self._lengths)
        self._first = cuda.pinned((rows, 1), dtypes[INPUT_IDS])
        self._free = deque(
            _RingEntry(
                cuda.pinned((rows,), dtypes[CACHE_LENGTH]), cuda.pinned((rows, 1), dtypes[NEXT_TOKEN]),
                cuda.pinned((rows, 1), dtypes[NEXT_LOGPROB]), cuda.event(),
            )
            for _ in range(ahead + 1)
        )
        self._under_way: deque[_RingEntry] = deque()
        self._begun = self._interrupted = False

    def renew(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Upload new content of the constant inputs; no step may be under way."""
        with self._cuda.current():
            self._arrays.renew(inputs)

    def begin(self, tokens: np.ndarray) -> None:
        """See `GreedySteps.begin`."""
        self._first[:, 0] = tokens
        self._begun = False

    def enqueue(self, lengths: np.ndarray) -> None:
        """See `GreedySteps.enqueue`."""
        entry, addresses, cuda = self._free.popleft(), self._arrays.addresses, self._cuda
        self._under_way.append(entry)
        self._interrupted = True  # until the event is behind the step
        self._lengths[:] = entry.lengths[:] = lengths
        with cuda.current():
            if self._begun:
                cuda.copy(addresses[INPUT_IDS], addresses[NEXT_TOKEN], self._first.nbytes)
            else:
                cuda.upload(addresses[INPUT_IDS], self._first)
            self._begun = True
            cuda.upload(addresses[CACHE_LENGTH], entry.lengths)
            self._graph.enqueue()
            cuda.download(entry.tokens, addresses[NEXT_TOKEN])
            cuda.download(entry.logprobs, addresses[NEXT_LOGPROB])
            cuda.record(entry.done)
        self._interrupted = False

    def wait_next(self) -> tuple[np.ndarray, np.ndarray]:
        """See `GreedySteps.wait_next`."""
        entry = self._under_way.popleft()
        self._free.append(entry)
        self._interrupted = True  # until the wait is over
        with self._cuda.current():
            entry.done.synchronize()
        self._interrupted = False
        return entry.tokens[:, 0].astype(np.int64), entry.logprobs[:, 0].copy()

    def finish(self) -> None:
        """See `GreedySteps.finish`."""
        last = self._under_way[-1] if self._under_way else None
        interrupted, self._interrupted = self._interrupted, False
        self._free += self._under_way
        self._under_way.clear()
        with self._cuda.current():
            if interrupted:  # by an error: work may be on the stream that no event is behind
                self._cuda.synchronize()
            elif last is not None:
                last.done.synchronize()
