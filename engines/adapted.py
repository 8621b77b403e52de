"""Graphs of other forms behind the plain contract: float32 arrays and a cache in place.

Everything is copied at each call, so this serves checks, and models whose own runtime is not at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from flamingo_rt.contract import APPENDED, IN_PLACE, GraphSpec

# Types and forms of the cache that graphs may have (`flamingo_rt.contract.graph_specs`); the plain one first.
FORMS = [(dtype, cache) for dtype in ("float32", "float16") for cache in (IN_PLACE, APPENDED)]

Bind = Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], Callable[[], None]]


def adapt(
    bind: Bind, spec: GraphSpec, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> Callable[[], None]:
    """A call that reads ``inputs`` and writes ``outputs``, which are as the plain contract says, through ``bind``,
    which takes arrays as ``spec`` says."""

    def call() -> None:
        appended = any(tensor.shape[0] == "C" for tensor in spec.inputs)
        lengths = inputs["cache_length"] if appended else np.zeros(0, np.int64)
        sources, targets = {}, {}
        for tensor in spec.inputs:
            array = inputs[tensor.name]
            if tensor.shape[0] == "C":
                array = array[:, :, : max(1, int(lengths.max()))].transpose(2, 0, 1, 3)
            sources[tensor.name] = np.ascontiguousarray(array, dtype=tensor.dtype)
        for tensor in spec.outputs:
            shape = outputs[tensor.name].shape
            if tensor.shape[0] == "T":
                shape = (inputs["input_ids"].shape[1], shape[0], shape[1], shape[3])
            targets[tensor.name] = np.empty(shape, dtype=tensor.dtype)
        bind(sources, targets)()
        for tensor in spec.outputs:
            found, array = targets[tensor.name], outputs[tensor.name]
            if tensor.shape[0] == "T":
                for row, start in enumerate(lengths):
                    array[row, :, start : start + len(found)] = found[:, row].swapaxes(0, 1)
            else:
                array[...] = found

    return call
