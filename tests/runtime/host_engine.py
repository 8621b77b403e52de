"""What engines of the tests have besides what they compute."""

from __future__ import annotations

from flamingo_rt.cache import HostCache
from flamingo_rt.contract import LANGUAGE_MODEL


class HostEngine:
    """The interface of an engine whose buffers are numpy arrays; `bind` is the test's."""

    continues_batches = True
    reads_device_arrays = False

    def __init__(self, specs) -> None:
        self.specs = specs

    def cache(self, rows, capacity):
        return HostCache(self.specs[LANGUAGE_MODEL], rows, capacity)
