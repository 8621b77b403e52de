"""A computation over tensors that stay where they are: copy inputs into them, run, read the outputs from them.

Run many times, it is captured on its second run and replayed from then on, on a GPU as a CUDA graph. Nothing in it may
depend on the content of a tensor but the numbers that it computes: no shape, no branch, no copy to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor

from flamingo_rt.contract import CACHE_LENGTH, INPUT_IDS, NEXT_LOGPROB, NEXT_TOKEN
from flamingo_rt.model.torch_device import Device, Mark, tensor_of


class StaticStep:
    """A computation from ``inputs`` to ``outputs``, tensors by name. ``repeats`` says that it may be captured."""

    def __init__(
        self, device: Device, inputs: dict[str, Tensor], outputs: dict[str, Tensor], compute: Callable[[], None],
        repeats: bool,
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._device, self._compute, self._may_capture = device, compute, repeats
        self._runs = 0
        self._replay: Callable[[], None] | None = None

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Copy new content into inputs."""
        for name, array in arrays.items():
            self.inputs[name].copy_(tensor_of(array))

    def run(self) -> None:
        """Compute the outputs; on a GPU that work is only enqueued. The first run prepares kernels and their memory, so
        that the second one can be captured."""
        if self._replay is None and self._may_capture and self._runs:
            self._replay = self._device.capture(self._compute)
            self._may_capture = self._replay is not None
        self._runs += 1
        (self._replay or self._compute)()

    def read(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Copy outputs to arrays; on a GPU this waits for them."""
        for name, array in arrays.items():
            tensor_of(array).copy_(self.outputs[name])


class _RingEntry:
    """Host memory of one step under way: its rows' lengths, int64 [B], what it chose, and the mark behind it."""

    def __init__(self, device: Device, step: StaticStep) -> None:
        def like(tensor: Tensor) -> Tensor:
            return device.host_tensor(tuple(tensor.shape), tensor.dtype)

        self.lengths = like(step.inputs[CACHE_LENGTH])
        self.tokens, self.logprobs = like(step.outputs[NEXT_TOKEN]), like(step.outputs[NEXT_LOGPROB])
        self.done: Mark = device.mark()


class TensorGreedySteps:
    """`flamingo_rt.backend.GreedySteps` over a step of one token a row: each takes the tokens of the previous one where
    that left them, and the host reads them while the next one runs. Entries of host memory are used in turns."""

    def __init__(self, device: Device, step: StaticStep, ahead: int) -> None:
        """At most ``ahead`` + 1 steps are under way. Call it within `Device.running`."""
        self._device, self._step = device, step
        ids = step.inputs[INPUT_IDS]
        self._first = device.host_tensor(tuple(ids.shape), ids.dtype)
        self._free = [_RingEntry(device, step) for _ in range(ahead + 1)]
        self._under_way: list[_RingEntry] = []
        self._begun = False

    def begin(self, tokens: np.ndarray) -> None:
        """See `GreedySteps.begin`."""
        self._first.numpy()[:, 0] = tokens
        self._begun = False

    def enqueue(self, lengths: np.ndarray) -> None:
        """See `GreedySteps.enqueue`."""
        step, entry = self._step, self._free.pop(0)
        self._under_way.append(entry)
        entry.lengths.numpy()[:] = lengths
        with self._device.running("running a step of the language model"):
            step.inputs[INPUT_IDS].copy_(step.outputs[NEXT_TOKEN] if self._begun else self._first, non_blocking=True)
            self._begun = True
            step.inputs[CACHE_LENGTH].copy_(entry.lengths, non_blocking=True)
            step.run()
            entry.tokens.copy_(step.outputs[NEXT_TOKEN], non_blocking=True)
            entry.logprobs.copy_(step.outputs[NEXT_LOGPROB], non_blocking=True)
            entry.done.record()

    def wait_next(self) -> tuple[np.ndarray, np.ndarray]:
        """See `GreedySteps.wait_next`."""
        entry = self._under_way.pop(0)
        self._free.append(entry)
        with self._device.running("running a step of the language model"):
            entry.done.synchronize()
        return entry.tokens.numpy()[:, 0].copy(), entry.logprobs.numpy()[:, 0].copy()

    def finish(self) -> None:
        """See `GreedySteps.finish`."""
        with self._device.running("running a step of the language model"):
            for entry in self._under_way:
                entry.done.synchronize()
        self._free += self._under_way
        self._under_way.clear()
