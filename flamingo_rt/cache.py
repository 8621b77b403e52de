"""The self-attention cache of a batch: what a decoder asks of one, and the one in host memory.

An engine makes its own (`Engine.cache`), so that the cache lies where the engine computes. Outside an engine a row's
past always has one form, numpy arrays [1, Hk, length, d] by the names of `past_name`: compiled prompts are made of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from flamingo_rt.contract import GraphSpec, TensorSpec


class Cache(Protocol):
    """Room for a number of tokens in each row of a batch. What no token was written to holds numbers, never NaN."""

    def buffers(self) -> dict[str, Any]:
        """What `Engine.bind` takes as past and present, by the name of the past; of the engine's own type."""
        ...

    def restore(self, arrays: Mapping[str, np.ndarray], length: int) -> None:
        """Start every row with the first ``length`` tokens of one row's past."""
        ...

    def save(self, length: int) -> dict[str, np.ndarray]:
        """A copy of the first row's first ``length`` tokens."""
        ...

    def widen(self, rows: int, length: int) -> None:
        """Make the only row, of ``length`` tokens, ``rows`` equal rows. Buffers taken before are no longer in use."""
        ...

    def copy_rows(self, targets: Sequence[int], sources: Sequence[int], tokens: slice) -> None:
        """Write the ``tokens`` of each source row over those of its target row, all as they were before; a row may be
        both."""
        ...


class CacheOfRows(Cache, Protocol):
    """A cache whose rows can be bound one by one: what an engine needs that does not continue batches."""

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

    def widen(self, rows: int, length: int) -> None:
        """As `Cache.widen`."""
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
