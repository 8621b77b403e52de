"""The seam between the decode loop and what runs the three graphs: named arrays in, named arrays out.

A `Backend` binds arrays to a graph and makes the self-attention `Cache`, which lies where the backend computes.
Outside a backend the past of one row always has one form, numpy arrays [1, Hk, length, d] by the names of
`flamingo_rt.contract.past_name`: compiled prompts are made of it. `HostBackend` is the part that backends with buffers
in host memory share.
"""

from __future__ import annotations

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
    TensorSpec,
)


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


class Backend(Protocol):
    """The three graphs of `flamingo_rt.contract`, ready to run."""

    name: str
    # With the cache in place, whatever form a backend's own graphs have.
    specs: dict[str, GraphSpec]
    # The largest sizes that compiled engines take; None where graphs take any size.
    limits: Limits | None
    # Whether several rows of a filled cache can be continued with several tokens each in one call.
    continues_batches: bool
    # Whether `bind` takes pixel values in device memory: what `flamingo_rt.device_arrays` can say where it lies.
    reads_device_arrays: bool
    # How many greedy steps are begun before it is known what the one before them chose; 0 where a step is done as soon
    # as it was begun, and one too many would cost time.
    steps_ahead: int

    def available_bytes(self) -> int | None:
        """Free memory of a device that has its own, where this backend computes; None where that is the machine's."""
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
        is made: change their content, not themselves. Those named ``constant`` never change: a backend may look at them
        once. Past and present are what `cache` gave, the same for both; a backend takes numpy arrays for them too.
        Other outputs may be left out: they stay where they are computed.
        """
        ...

    def greedy_steps(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], constant: Collection[str] = ()
    ) -> GreedySteps:
        """Steps of the language model, with arrays as for `bind`: one token a row, and of the outputs the greedy choice
        alone beside present. ``input_ids`` and ``cache_length`` are set by the steps themselves."""
        ...


class Cache(Protocol):
    """Room for a number of tokens in each row of a batch. What no token was written to holds numbers, never NaN."""

    def buffers(self) -> dict[str, Any]:
        """What `Backend.bind` takes as past and present, by the name of the past; of the backend's own type."""
        ...

    def restore(self, arrays: Mapping[str, np.ndarray], length: int) -> None:
        """Start every row with the first ``length`` tokens of one row's past."""
        ...

    def save(self, length: int) -> dict[str, np.ndarray]:
        """A copy of the first row's first ``length`` tokens."""
        ...

    def expand_rows(self, rows: int, length: int) -> None:
        """Make the only row, of ``length`` tokens, ``rows`` equal rows. Buffers taken before are no longer in use."""
        ...

    def copy_rows(self, targets: Sequence[int], sources: Sequence[int], tokens: slice) -> None:
        """Write the ``tokens`` of each source row over those of its target row, all as they were before; a row may be
        both."""
        ...


class CacheOfRows(Cache, Protocol):
    """A cache whose rows can be bound one by one: what a backend needs that does not continue batches."""

    def row(self, index: int) -> dict[str, Any]:
        """`buffers` of one row."""
        ...


class HostCache:
    """A cache of numpy arrays [B, Hk, C, d]."""

    def __init__(self, language_model: GraphSpec, rows: int, capacity: int) -> None:
        """``language_model`` has its cache in place. Its past inputs are those with a dimension ``C``."""
        self._specs = [spec for spec in language_model.inputs if "C" in spec.shape]
        self._capacity = capacity
        self._arrays = {spec.name: self._zeros(spec, rows) for spec in self._specs}

    def buffers(self) -> dict[str, np.ndarray]:
        """The arrays themselves."""
        return self._arrays

    def row(self, index: int) -> dict[str, np.ndarray]:
        """Views [1, Hk, C, d]."""
        return {name: array[index : index + 1] for name, array in self._arrays.items()}

    def restore(self, arrays: Mapping[str, np.ndarray], length: int) -> None:
        """As `Cache.restore`."""
        for name, array in arrays.items():
            self._arrays[name][:, :, :length] = array[:, :, :length]

    def save(self, length: int) -> dict[str, np.ndarray]:
        """As `Cache.save`."""
        return {name: array[:1, :, :length].copy() for name, array in self._arrays.items()}

    def expand_rows(self, rows: int, length: int) -> None:
        """As `Cache.expand_rows`."""
        for spec in self._specs:  # one at a time, so that only one is there twice
            array = self._arrays[spec.name]
            self._arrays[spec.name] = self._zeros(spec, rows)
            self._arrays[spec.name][:, :, :length] = array[:, :, :length]

    def copy_rows(self, targets: Sequence[int], sources: Sequence[int], tokens: slice) -> None:
        """As `Cache.copy_rows`."""
        for array in self._arrays.values():
            array[list(targets), :, tokens] = array[list(sources), :, tokens]  # the right side is a copy

    def _zeros(self, spec: TensorSpec, rows: int) -> np.ndarray:
        return np.zeros(spec.resolve({"B": rows, "C": self._capacity}), dtype=spec.array_dtype)


Arrays = Mapping[str, np.ndarray]


class HostBackend:
    """The part of `flamingo_rt.backend.Backend` that does not depend on what computes."""

    bind: Callable[..., Callable[[], None]]  # a subclass's method, as `Backend.bind`
    limits: Limits | None = None
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
        """As `Backend.greedy_steps`."""
        return HostGreedySteps(self.bind(LANGUAGE_MODEL, inputs, outputs, constant), inputs, outputs)


class HostGreedySteps:
    """`flamingo_rt.backend.GreedySteps` over a bound step: it is done when it was launched."""

    def __init__(self, run: Callable[[], None], inputs: Arrays, outputs: Arrays) -> None:
        self._run, self._tokens, self._lengths = run, inputs[INPUT_IDS], inputs[CACHE_LENGTH]
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
