"""The interface between a stage of training and the loop (`loop.py`), which knows nothing of vision or language."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn

# Ways to divide a stage's batches, which save memory: into parts, one after the other or one for each rank; or among
# ranks alone.
Division = Literal["parts", "ranks"]


class Loss(NamedTuple):
    """The sum of a part's losses, with its gradient: the loop divides it by the number of targets of the whole batch.
    ``extra`` is the mean of another task's losses over the part, and is divided by the number of parts."""

    total: Tensor
    extra: Tensor | None = None


class Drawn(NamedTuple):
    """One part of a step as a worker made it: the batch, or the error that stopped it; names and reasons of the samples
    that were damaged, and how many samples were read."""

    batch: Any
    damaged: tuple[str, ...] = ()
    read: int = 0
    names: tuple[str, ...] = ()
    error: Exception | None = None


class Batches(Protocol):
    """A dataset cut into batches: a function of (step, part) alone, so that any number of workers gives the same."""

    def draw(self, step: int, part: int, parts: int) -> Drawn:
        """Part ``part`` of ``parts`` of the batch of ``step``. ``names`` of the result are the samples' names."""
        ...

    def fingerprint(self) -> Mapping[str, Any]:
        """Name what a resumed run must have in common with this one: ``data``, the content of the source, ``files``,
        if it has some (`SampleSource.files`), ``batch``, and the other options that change how it is cut."""
        ...


@dataclass(frozen=True)
class Dataset:
    """One dataset of the mixture: its name in logs, its λ, and its batches."""

    name: str
    weight: float
    batches: Batches


def is_matrix(parameter: Tensor) -> bool:
    """Whether more than one dimension is longer than 1, as of matrices and kernels, on which weight decay acts: an
    NFNet's gains are [out, 1, 1, 1]."""
    return sum(size > 1 for size in parameter.shape) > 1


class Updating(NamedTuple):
    """The way a parameter is updated: with weight decay or without, and at what share of the learning rate."""

    decayed: bool
    rate_share: float = 1.0


class Stage(Protocol):
    """One stage.

    ``model`` holds all parameters; those that require a gradient are trained, and are all of it that a resumed run
    needs (`state.py`): a step changes no buffer. ``shards`` names the modules that FSDP shards one by one, in the order
    of the forward pass.
    """

    @property
    def model(self) -> nn.Module: ...

    @property
    def datasets(self) -> Sequence[Dataset]: ...

    @property
    def division(self) -> Division: ...

    def shards(self) -> Sequence[nn.Module]: ...

    def loss(self, dataset: str, batch: Any) -> Loss:
        """The loss of one part of a batch of this dataset, in training mode."""
        ...

    def activation_bytes(self, batch: Any) -> int:
        """Bytes, or fewer than these, that a part of a batch keeps for the backward pass; 0 where that is not known."""
        ...

    def targets(self, batch: Any) -> int:
        """The number of targets in a part of a batch: tokens, or pairs; known before the loss is computed."""
        ...

    def updating(self, name: str, parameter: nn.Parameter) -> Updating:
        """The way in which a trained parameter of `model`, of this name, is updated."""
        ...

    def clip(self, bound: float) -> float:
        """Clip the gradients in place; gives their norm before that (`clip_norm` where one bound holds for all)."""
        ...

    def scalars(self) -> dict[str, float]:
        """Numbers to log beside the loss: gates, a temperature."""
        ...

    def sample_lines(self) -> Iterator[str]:
        """Lines that show what the model answers or scores now; every rank makes them, the first one's are shown."""
        ...

    def tokens(self, batch: Any) -> int:
        """Tokens, or pictures where there are none, in a part of a batch: what throughput counts."""
        ...

    def identity(self) -> dict[str, Any]:
        """Everything that a resumed run must have in common with this one, beside the options: the model's
        configuration, the tokenizer, and hashes of frozen weights."""
        ...

    def write(self, out: Path, overwrite: bool) -> None:
        """Write the result, which appears whole or not at all."""
        ...
