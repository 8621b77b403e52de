"""Tensors of other projects' files, from which ours are taken, whole or as slices of fused ones."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from flamingo_rt.errors import DataError
from flamingo_rt.weights.lazy import LazyTensor


@dataclass(frozen=True)
class TensorSlice:
    """A tensor of another project, or the ``index``-th of ``count`` that are stacked in its rows.

    With ``heads`` above 1 the rows are stacked head by head: [heads, count, rows / (heads * count), ...].
    """

    name: str
    index: int = 0
    count: int = 1
    heads: int = 1


@dataclass(frozen=True)
class Source:
    """The tensors of another project's file or folder, by name; ``what`` describes it in messages."""

    what: str
    path: Path
    tensors: Mapping[str, LazyTensor]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def tensor(self, name: str) -> LazyTensor:
        """The tensor ``name``. Raises `DataError` with file and tensor when it is missing."""
        if name not in self.tensors:
            raise DataError(
                f"{self.path} lacks tensor {name}, which {self.what} needs: is it another model's, or incomplete?"
            )
        return self.tensors[name]

    def rows(self, name: str) -> int:
        """Size of a tensor's first dimension."""
        return self.shape(name)[0]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor. Raises `DataError` for a single number, and for a dimension of size 0."""
        tensor = self.tensor(name)
        if not tensor.shape or 0 in tensor.shape:
            found = "empty" if tensor.shape else "a single number"
            raise DataError(f"{tensor.file}: tensor {name} is {found}, {self.what} needs a vector or a matrix")
        return tensor.shape

    def layers(self, path: str) -> int:
        """Number of layers below ``path``, by the highest N in ``path.N.…``; at least 1. A gap in between is found when
        its tensors are taken."""
        numbers = (re.match(rf"{re.escape(path)}\.(\d{{1,4}})\.", name) for name in self.tensors)
        highest = max((int(match[1]) for match in numbers if match), default=0)
        return min(highest, len(self.tensors)) + 1  # more layers than tensors: then one is missing, and found so

    def check_all_taken(self, roots: tuple[str, ...], taken: Container[str], no_weights: re.Pattern[str]) -> None:
        """Raise `DataError` when a tensor below ``roots`` would be left out, such as a bias or a norm: it would change
        the result. ``no_weights`` matches the names of those that would not."""
        for name, tensor in self.tensors.items():
            if name.startswith(roots) and name not in taken and not no_weights.search(name):
                raise DataError(
                    f"{tensor.file}: tensor {name} has no place in {self.what} as its configuration and its other "
                    "tensors describe it: another architecture?"
                )

    def floating(self, name: str) -> LazyTensor:
        """The floating-point tensor ``name``. Raises `DataError` for integers, such as quantized weights."""
        tensor = self.tensor(name)
        if not tensor.dtype.is_floating_point:
            raise DataError(
                f"{tensor.file}: tensor {name} is {_type_name(tensor.dtype)}, not floating point: quantized "
                "weights cannot be imported, take the original ones"
            )
        return tensor

    def tensor_of(self, part: TensorSlice, shape: tuple[int, ...]) -> LazyTensor:
        """The tensor of ``shape`` that ``part`` describes. Raises `DataError` when there is none, or another."""
        tensor = self.floating(part.name)
        expected = (shape[0] * part.count, *shape[1:]) if shape else ()
        if _squeezed(tensor.shape) != _squeezed(expected):
            raise DataError(
                f"{tensor.file}: tensor {part.name} has shape {list(tensor.shape)}, {self.what} needs {list(expected)}"
            )

        def read() -> Tensor:
            whole = tensor.read().reshape(expected)
            if part.count == 1:
                return whole.reshape(shape)
            return whole.unflatten(0, (part.heads, part.count, -1))[:, part.index].reshape(shape).contiguous()

        return replace(tensor, shape=shape, read=read)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without dimensions of size 1: gates are stored as [1] or as single numbers."""
    return tuple(size for size in shape if size != 1)


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
