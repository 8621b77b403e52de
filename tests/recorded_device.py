"""A stand-in for a GPU under PyTorch: a device that captures the operations of a step as a CUDA graph would, and
replays those alone, on the CPU.

It is strict about what it can see: while a step is captured no number may come to the host, no tensor may be made from
Python's numbers, and nothing may be sized by content; a replay runs the recorded operations on the recorded tensors,
whose content is spoiled before. Memory can be made to end.

It cannot show: whether CUDA captures the kernels; streams and events; PyTorch's memory of captured work; speed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flamingo_rt.model.torch_device import Device

aten = torch.ops.aten
FORBIDDEN = {
    aten._local_scalar_dense.default: "a number comes to the host", aten.lift_fresh.default: "a tensor of numbers",
    aten.nonzero.default: "a shape by content", aten.masked_select.default: "a shape by content",
    aten.unique_dim.default: "a shape by content", aten.repeat_interleave.Tensor: "a shape by content",
}


class Recorder(TorchDispatchMode):
    """Records every operation within its context."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_content = func == aten.index.Tensor and torch.bool in {each.dtype for each in args[1] if each is not None}
        if func in FORBIDDEN or by_content:
            said = FORBIDDEN.get(func, "a shape by content")
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing: {said}")
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, made))
        return made


class RecordedDevice(Device):
    """Counts what is captured and replayed; with ``refuse`` nothing can be captured. ``memory`` are the bytes that it
    gives."""

    title = "a stand-in"

    def __init__(self, memory: int | None = None) -> None:
        super().__init__()
        self.captures = self.replays = self.freed = 0
        self.refuse, self.memory = False, memory
        self.given: list[weakref.ref[Tensor]] = []

    def capture(self, run: Callable[[], None]) -> Callable[[], None] | None:
        if self.refuse:
            return None
        self.captures += 1
        recorder = Recorder()
        with recorder:
            run()
        spoil(recorder.calls)

        def replay() -> None:
            self.replays += 1
            for func, args, kwargs, made in recorder.calls:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                    if own(old, args):
                        old.copy_(new)

        return replay

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        made = super().zeros(shape, dtype)
        if self.memory is not None and self.used() + made.nbytes > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate some")
        self.given.append(weakref.ref(made))
        return made

    def available_bytes(self) -> int | None:
        return None if self.memory is None else self.memory - self.used()

    def free_cached(self) -> None:
        self.freed += 1

    def used(self) -> int:
        """Bytes of the tensors that somebody holds."""
        return sum(tensor.nbytes for tensor in (each() for each in self.given) if tensor is not None)


def own(made: object, args: tuple) -> bool:
    """Whether it is a tensor with memory of its own, and not a view of an argument or an argument."""
    if not isinstance(made, Tensor):
        return False
    places = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
    return made.untyped_storage().data_ptr() not in places


def spoil(calls: list[tuple]) -> None:
    """Fill every tensor that was made while recording with what shows if it is read."""
    for _, args, _, made in calls:
        for tensor in tree_leaves(made):
            if own(tensor, args) and tensor.numel():
                tensor.fill_(float("nan") if tensor.is_floating_point() else 99)
