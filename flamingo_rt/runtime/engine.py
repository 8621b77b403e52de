"""The seam between the decode loop and a backend: named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from flamingo_rt.cache import Cache
from flamingo_rt.contract import GraphSpec


class Engine(Protocol):
    """The three graphs of `flamingo_rt.contract`, ready to run."""

    name: str
    # With the cache in place, whatever form an engine's own graphs have.
    specs: dict[str, GraphSpec]
    # Whether several rows of a filled cache can be continued with several tokens each in one call.
    continues_batches: bool
    # Whether `bind` takes pixel values in device memory: what `flamingo_rt.device_arrays` can say where it lies.
    reads_device_arrays: bool

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
        """
        ...
