"""The processes of a run: one, or several that ``torchrun`` started, which share the parameters by FSDP2.

    torchrun --nproc-per-node 8 -m flamingo_rt train flamingo --config flamingo.toml --out runs/flamingo

Each rank holds a slice of every parameter, gathers a layer's whole parameters when it comes to that layer, and reads
its own part of each batch. On CPUs the ranks talk by gloo, on GPUs by NCCL.
"""

from __future__ import annotations

import gc
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flamingo_rt.errors import UsageError
from flamingo_rt.training.options import Precision

T = TypeVar("T")
SAID = "said"  # key in the table of short texts: how many errors were said


@dataclass(frozen=True)
class World:
    """The processes of this run: the number of this one, how many there are, the device of this one, and the table of
    short texts that they share (`torch.distributed.Store`), if there are several."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    store: Any = field(default=None, compare=False, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    @property
    def host_size(self) -> int:
        """The number of processes on this host: all of them, where ``torchrun`` says nothing else."""
        given = os.environ.get("LOCAL_WORLD_SIZE", "")
        return int(given) if given.isdecimal() else self.size

    def total(self, number: float) -> float:
        """The sum of a number over all processes."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.item()

    def from_first(self, make: Callable[[], T]) -> T:
        """The result of ``make`` in the first process; its error is raised in all."""
        if self.size == 1:
            return make()
        found: list[Any] = [None, None]
        if self.is_first:
            try:
                found[0] = make()
            except Exception as error:
                found[1] = error
        dist.broadcast_object_list(found)
        if found[1] is not None:
            raise found[1]
        return found[0]

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, in order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def says_first(self, text: str) -> bool:
        """Whether this process is the first to say ``text``: an error that all meet is printed once. Waits for none."""
        if self.store is None:
            return True
        try:
            self.store.add(SAID, 1)
            return bool(self.store.add(f"said {hashlib.sha256(text.encode(errors='replace')).hexdigest()}", 1) == 1)
        except RuntimeError:  # the process that kept the table has ended
            return True

    def hears_of_an_error(self) -> bool:
        """Whether a process has said why it ends. Then an error of this one may be that the other left a collective
        call: torchrun ends those that still wait in one. Waits for none."""
        try:
            return self.store is not None and bool(self.store.check([SAID]))
        except RuntimeError:  # the process that kept the table has ended
            return False


def join_world() -> World:
    """The processes that ``torchrun`` started, or this one alone.

    Raises `UsageError` for an environment in which only some of torchrun's variables are set.
    """
    cuda = torch.cuda.is_available()
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return World(device=torch.device("cuda" if cuda else "cpu"))
    _check_environment(("WORLD_SIZE", "RANK", "MASTER_PORT", *(["LOCAL_RANK"] if cuda else [])))
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), device)
    store, rank, size = next(dist.rendezvous("env://"))
    dist.init_process_group("nccl" if cuda else "gloo", store=dist.PrefixStore("group", store), rank=rank,
                            world_size=size)
    return World(rank, size, device, store)


def _check_environment(numbers: Sequence[str]) -> None:
    wrong = [name for name in numbers if not os.environ.get(name, "").isdecimal()]
    wrong += [] if os.environ.get("MASTER_ADDR") else ["MASTER_ADDR"]
    if wrong:
        raise UsageError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']!r} in the environment, and of what torchrun sets with it "
            f"{', '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} missing or no number: start with torchrun, or "
            "unset WORLD_SIZE"
        )


def leave_world() -> None:
    """End what `join_world` began. The ranks wait for each other, and what refers to the group in a circle is freed
    before it: its threads would abort the process when the interpreter ends."""
    if dist.is_initialized():
        if sys.exc_info()[0] is None:
            dist.barrier()
        gc.collect()
        dist.destroy_process_group()


def shard(model: nn.Module, layers: Sequence[nn.Module], world: World) -> None:
    """Divide the parameters among the ranks, layer by layer; with one process nothing is done. Scalars (NFNet's gains),
    which FSDP does not take, stay whole on every rank, with the mean of their gradients."""
    if world.size == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    scalars = {parameter for parameter in model.parameters() if parameter.ndim == 0}
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=scalars)
    fully_shard(model, mesh=mesh, ignored_params=scalars)
    for scalar in scalars:
        if scalar.requires_grad:
            scalar.register_post_accumulate_grad_hook(_mean_gradient)


def _mean_gradient(parameter: Tensor) -> None:
    """Replace a gradient by its mean over the ranks. What was added up before is the same on all, and stays so."""
    assert parameter.grad is not None  # the hook runs when it has been computed
    dist.all_reduce(parameter.grad)
    parameter.grad /= dist.get_world_size()


def compile_layers(layers: Sequence[nn.Module]) -> None:
    """Compile what each layer computes. Layers of one class share what was compiled; so recomputation goes around it:
    within, it would be one function for layers of every class, of which torch compiles only a few forms."""
    for layer in layers:
        forward = layer.forward
        layer.forward = torch.compile(forward)


def recompute_activations(layers: Sequence[nn.Module]) -> None:
    """Keep none of these layers' activations for the backward pass: it computes them again."""
    for layer in layers:
        forward = layer.forward
        layer.forward = _recomputed(forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        return checkpoint(forward, *arguments, use_reentrant=False, **named)

    return call


def autocast(world: World, precision: Precision) -> AbstractContextManager[Any]:
    """Matrix products in bfloat16 within this context, where the run asks for it."""
    return torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def freeze_in_precision(module: nn.Module, precision: Precision) -> None:
    """Stop training a module's parameters; with ``bf16`` they are kept in bfloat16, half the memory (§B.1.2)."""
    module.requires_grad_(False)
    if precision == "bf16":
        for parameter in module.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be divided among ranks, whole; every rank must ask."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if gather is not None else tensor


def whole_state(model: nn.Module, world: World) -> dict[str, Tensor]:
    """The state dict of a divided model, whole and on the host, in the first rank; empty in the others, which must ask
    too and keep nothing."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        gathered = whole(tensor.detach())
        if world.is_first:
            state[name] = gathered.cpu()
    return state


def local(tensor: Tensor) -> Tensor:
    """This rank's slice of a tensor that may be divided among ranks."""
    slice_of = getattr(tensor, "to_local", None)
    return slice_of() if slice_of is not None else tensor
