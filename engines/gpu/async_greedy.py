"""Greedy steps that feed one another on the GPU: a step takes the tokens of the one before from device memory, and the
host reads them while the next one runs already. Not run on a GPU so far.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flamingo_rt.contract import CACHE_LENGTH, INPUT_IDS, NEXT_LOGPROB, NEXT_TOKEN
from flamingo_rt.engines.gpu.cuda import Cuda
from flamingo_rt.engines.gpu.device_run import DeviceRun
from flamingo_rt.errors import DataError


@dataclass
class _Slot:
    """Pinned memory of one step that is under way, and the mark behind it."""

    lengths: np.ndarray
    chosen: np.ndarray
    logprobs: np.ndarray
    done: Any = None


class AsyncGreedySteps:
    """`flamingo_rt.backend.GreedySteps` over a bound step, which it takes for itself."""

    def __init__(self, cuda: Cuda, run: DeviceRun, lengths: np.ndarray, ahead: int) -> None:
        """``lengths`` is the array that the run was bound to; a run may look at it when it is launched. At most
        ``ahead`` steps are begun before the one before them is taken. To be made within `Cuda.current`."""
        read, written = run.dtypes[INPUT_IDS], run.dtypes[NEXT_TOKEN]
        if read != written:
            raise DataError(
                f"the language model reads tokens as {read} and writes them as {written}: build its engines again, "
                "with one version of TensorRT"
            )
        run.leave_copies_out()
        self._cuda, self._run, self._lengths = cuda, run, lengths
        rows, dtypes = len(lengths), run.dtypes
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
        """Take new content of what is the same in all steps; none is under way."""
        with self._cuda.current():
            self._run.renew(inputs)

    def begin(self, tokens: np.ndarray) -> None:
        """As `GreedySteps.begin`."""
        self._first[:, 0] = tokens
        self._begun = False

    def launch(self, lengths: np.ndarray) -> None:
        """As `GreedySteps.launch`."""
        slot, run, cuda = self._free.pop(), self._run, self._cuda
        self._under_way.append(slot)
        self._lengths[:] = slot.lengths[:] = lengths
        with cuda.current():
            if self._begun:
                size = self._first.nbytes
                cuda.copy_rows(run.address(INPUT_IDS), size, run.address(NEXT_TOKEN), size, size, 1)
            else:
                cuda.upload(run.address(INPUT_IDS), self._first)
            self._begun = True
            cuda.upload(run.address(CACHE_LENGTH), slot.lengths)
            run.launch()
            cuda.download(slot.chosen, run.address(NEXT_TOKEN))
            cuda.download(slot.logprobs, run.address(NEXT_LOGPROB))
            slot.done = cuda.mark()

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """As `GreedySteps.take`."""
        slot = self._under_way.popleft()
        with self._cuda.current():
            slot.done.synchronize()
        self._free.append(slot)
        return slot.chosen[:, 0].astype(np.int64), slot.logprobs[:, 0].copy()

    def finish(self) -> None:
        """As `GreedySteps.finish`."""
        with self._cuda.current():
            self._cuda.synchronize()
        self._free += self._under_way
        self._under_way.clear()
