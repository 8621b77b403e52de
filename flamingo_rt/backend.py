"""The seam between the decode loop and what runs the three graphs: named arrays in, named arrays out.

A `Backend` binds arrays to a graph and hands out the self-attention `Cache`, which lives where the backend computes.
The decoder that opens a cache closes it; a backend may keep the memory of a closed one for the next. Outside a backend
one row's past always has the same form, numpy arrays [1, Hk, length, d] by the names of
`flamingo_rt.contract.past_name`: compiled prompts hold it so. `HostBackend` is the part shared by backends whose
buffers are in host memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from flamingo_rt.contract import (
    CACHE_LENGTH,
    INPUT_IDS,
    LANGUAGE_MODEL,
    NEXT_LOGPROB,
    NEXT_TOKEN,
    GraphSpec,
    Limits,
    layer_parts,
    past_name,
    present_name,
)


class GreedySteps(Protocol):
    """Decode steps of one token a row, each fed with the likeliest tokens of the previous one. The host may read these
    after the next step has begun."""

    def begin(self, tokens: np.ndarray) -> None:
        """Set the tokens of the first step, int64 [B]."""
        ...

    def enqueue(self, lengths: np.ndarray) -> None:
        """Let one more step run behind those under way; ``lengths`` int64 [B] are the tokens cached in each row when it
        runs. At most `Backend.steps_ahead` + 1 steps may be under way."""
        ...

    def wait_next(self) -> tuple[np.ndarray, np.ndarray]:
        """Wait for the oldest step under way, and for no later one. Returns the tokens it chose, int64 [B], and their
        log-probabilities, float32 [B]."""
        ...

    def finish(self) -> None:
        """Wait for all steps under way and drop their results."""
        ...


class Backend(Protocol):
    """The three graphs of `flamingo_rt.contract`, ready to run."""

    @property
    def name(self) -> str:
        """The backend's name on the command line, with its device where that is chosen apart."""
        ...

    @property
    def specs(self) -> dict[str, GraphSpec]:
        """Names, types and shapes of the graphs' tensors, with the cache in place whatever form the graphs have."""
        ...

    @property
    def limits(self) -> Limits | None:
        """The largest sizes that compiled engines take; None where graphs take any size."""
        ...

    @property
    def continues_batches(self) -> bool:
        """Whether several rows of a filled cache can be continued with several tokens each in one call."""
        ...

    @property
    def reads_device_arrays(self) -> bool:
        """Whether `bind` takes pixel values in device memory (`flamingo_rt.device_arrays`)."""
        ...

    @property
    def steps_ahead(self) -> int:
        """Number of greedy steps enqueued before the result of the previous one is known; 0 where a step is done as
        soon as it is enqueued, and one too many would cost time."""
        ...

    def available_bytes(self) -> int | None:
        """Free memory of the device this backend computes on; None where that is the machine's own memory."""
        ...

    def device_probe(self) -> Any | None:
        """A probe that measures the device's speed (`flamingo_rt.bench.rates.Measured`); None for the CPU."""
        ...

    def cache(self, rows: int, capacity: int) -> Cache:
        """Open a cache with room for ``capacity`` tokens in each of ``rows`` rows; the caller closes it."""
        ...

    def bind(
        self, graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], constant: Collection[str] = ()
    ) -> Callable[[], None]:
        """A call that reads ``inputs`` and writes ``outputs`` each time it is made.

        They are numpy arrays, C-contiguous, named, typed and shaped as ``specs`` says, and are read when the call is
        made: change their content, not the arrays. Those named ``constant`` never change: a backend may read them once.
        Past and present are a cache's `Cache.buffers`, the same for both; a backend takes numpy arrays for them too.
        Other outputs may be left out: they stay where they are computed.
        """
        ...

    def bind_greedy_steps(
        self, cache: Cache, inputs: Mapping[str, Any], outputs: Mapping[str, Any], constant: Collection[str] = ()
    ) -> GreedySteps:
        """Bind greedy steps of the language model to ``cache``, one of this backend's own.

        ``inputs`` and ``outputs`` are arrays as for `bind`, without past and present; the outputs are ``next_token``
        and ``next_logprob``. The steps themselves set ``input_ids`` and ``cache_length``.
        """
        ...


class Cache(Protocol):
    """Room for a number of tokens in each row of a batch. Cache slots without a token hold numbers, never NaN."""

    def buffers(self) -> Mapping[str, Any]:
        """The buffers that `Backend.bind` takes as past and present, by the name of the past; of the backend's own
        type. Raises `ValueError` once the cache is closed."""
        ...

    def row(self, index: int) -> Mapping[str, Any]:
        """`buffers` of one row. Called only where a backend does not continue batches."""
        ...

    def restore(self, arrays: Mapping[str, np.ndarray], length: int) -> None:
        """Start every row with the first ``length`` tokens of one row's past."""
        ...

    def save(self, length: int) -> dict[str, np.ndarray]:
        """A copy of the first row's first ``length`` tokens."""
        ...

    def expand_rows(self, rows: int, length: int) -> Cache:
        """A cache of ``rows`` rows that all begin with the ``length`` tokens of this one's only row. It takes the place
        of this cache, which is closed."""
        ...

    def copy_rows(self, targets: Sequence[int], sources: Sequence[int], tokens: slice) -> None:
        """Overwrite the ``tokens`` of each target row with those of its source row, as they were before the call; a row
        may be both."""
        ...

    def close(self) -> None:
        """Give the memory back to the backend. Closing twice does nothing."""
        ...


def present_buffers(past: Mapping[str, Any]) -> dict[str, Any]:
    """A cache's buffers under the names of the language model's present outputs."""
    return {present_name(*part): past[past_name(*part)] for part in layer_parts(len(past) // 2)}


class HostCache:
    """A cache of numpy arrays [B, Hk, C, d]."""

    def __init__(self, language_model: GraphSpec, rows: int, capacity: int) -> None:
        """``language_model`` has its cache in place. Its past inputs are those with a dimension ``C``."""
        self._language_model, self._capacity = language_model, capacity
        self._held: dict[str, np.ndarray] | None = {
            spec.name: np.zeros(spec.resolve({"B": rows, "C": capacity}), dtype=spec.array_dtype)
            for spec in language_model.inputs if "C" in spec.shape
        }

    def buffers(self) -> dict[str, np.ndarray]:
        """The arrays themselves."""
        if self._held is None:
            raise ValueError("the cache is closed")
        return self._held

    def row(self, index: int) -> dict[str, np.ndarray]:
        """Views [1, Hk, C, d]."""
        return {name: array[index : index + 1] for name, array in self.buffers().items()}

    def restore(self, arrays: Mapping[str, np.ndarray], length: int) -> None:
        """See `Cache.restore`."""
        held = self.buffers()
        for name, array in arrays.items():
            held[name][:, :, :length] = array[:, :, :length]

    def save(self, length: int) -> dict[str, np.ndarray]:
        """See `Cache.save`."""
        return {name: array[:1, :, :length].copy() for name, array in self.buffers().items()}

    def expand_rows(self, rows: int, length: int) -> HostCache:
        """See `Cache.expand_rows`."""
        expanded, held = HostCache(self._language_model, rows, self._capacity), self.buffers()
        # Zeroed arrays take memory when they are written to: one layer is there twice at a time, not the whole cache.
        for name, array in expanded.buffers().items():
            array[:, :, :length] = held.pop(name)[:, :, :length]
        self.close()
        return expanded

    def copy_rows(self, targets: Sequence[int], sources: Sequence[int], tokens: slice) -> None:
        """See `Cache.copy_rows`."""
        for array in self.buffers().values():
            array[list(targets), :, tokens] = array[list(sources), :, tokens]  # the right side is a copy

    def close(self) -> None:
        """Drop the arrays."""
        self._held = None


Arrays = Mapping[str, np.ndarray]


class HostBackend(ABC):
    """The part of `Backend` that is the same for all backends with buffers in host memory."""

    name: str
    limits: Limits | None = None
    steps_ahead = 0  # a call returns when its step is done
    continues_batches = False
    reads_device_arrays = False

    def __init__(self, specs: dict[str, GraphSpec]) -> None:
        self.specs = specs

    @abstractmethod
    def bind(
        self, graph: str, inputs: Arrays, outputs: Arrays, constant: Collection[str] = ()
    ) -> Callable[[], None]:
        """See `Backend.bind`."""

    def available_bytes(self) -> int | None:
        """None: the memory is the machine's."""
        return None

    def device_probe(self) -> Any | None:
        """None: it computes on the CPU."""
        return None

    def cache(self, rows: int, capacity: int) -> HostCache:
        """A cache in host memory, read and written in place by the kernels."""
        return HostCache(self.specs[LANGUAGE_MODEL], rows, capacity)

    def bind_greedy_steps(
        self, cache: Cache, inputs: Arrays, outputs: Arrays, constant: Collection[str] = ()
    ) -> GreedySteps:
        """See `Backend.bind_greedy_steps`."""
        return bind_host_greedy_steps(self, cache, inputs, outputs, constant)


def bind_host_greedy_steps(
    backend: Backend, cache: Cache, inputs: Arrays, outputs: Arrays, constant: Collection[str]
) -> HostGreedySteps:
    """`HostGreedySteps` over a step that ``backend`` binds."""
    past = cache.buffers()
    run = backend.bind(LANGUAGE_MODEL, {**inputs, **past}, {**outputs, **present_buffers(past)}, constant)
    return HostGreedySteps(run, inputs, outputs)


class HostGreedySteps:
    """`GreedySteps` over a bound step that is done when its call returns."""

    def __init__(self, run: Callable[[], None], inputs: Arrays, outputs: Arrays) -> None:
        self._run, self._tokens, self._lengths = run, inputs[INPUT_IDS], inputs[CACHE_LENGTH]
        self._chosen, self._logprobs = outputs[NEXT_TOKEN], outputs[NEXT_LOGPROB]

    def begin(self, tokens: np.ndarray) -> None:
        """See `GreedySteps.begin`."""
        self._tokens[:, 0] = tokens

    def enqueue(self, lengths: np.ndarray) -> None:
        """See `GreedySteps.enqueue`. The step is done when this returns."""
        self._lengths[:] = lengths
        self._run()
        self._tokens[:] = self._chosen

    def wait_next(self) -> tuple[np.ndarray, np.ndarray]:
        """See `GreedySteps.wait_next`."""
        return self._chosen[:, 0].copy(), self._logprobs[:, 0].copy()

    def finish(self) -> None:
        """Do nothing: no step is under way."""
