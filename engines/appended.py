"""A graph that gives the new keys and values alone, behind the contract's cache in place.

The cache is copied at each call, so this serves checks, and models whose own runtime is not at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from flamingo_rt.contract import GraphSpec

Arrays = Mapping[str, np.ndarray]
Bind = Callable[[Arrays, Arrays], Callable[[], None]]


def appended(bind: Bind, spec: GraphSpec, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
    """A call that reads ``inputs`` and writes ``outputs``, which have the cache in place, through ``bind``, which takes
    arrays as ``spec`` says: past [C, B, Hk, d], present [T, B, Hk, d]."""
    past = [tensor.name for tensor in spec.inputs if tensor.shape[0] == "C"]
    present = [tensor for tensor in spec.outputs if tensor.shape[0] == "T"]

    def call() -> None:
        lengths = inputs["cache_length"]
        cached = max(1, int(lengths.max()))
        slots = {name: np.ascontiguousarray(inputs[name][:, :, :cached].transpose(2, 0, 1, 3)) for name in past}
        sizes = {"B": len(lengths), "T": inputs["input_ids"].shape[1]}
        new = {tensor.name: np.empty(tensor.resolve(sizes), tensor.array_dtype) for tensor in present}
        bind({**inputs, **slots}, {**outputs, **new})()
        for name, tokens in new.items():
            for row, start in enumerate(lengths):
                outputs[name][row, :, start : start + len(tokens)] = tokens[:, row].swapaxes(0, 1)

    return call
