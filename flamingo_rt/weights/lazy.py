"""Tensors whose values are not read yet, so that models of any size can be listed, renamed and converted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from flamingo_rt.errors import DataError


@dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file: shape and dtype are known, the values are read on demand.

    ``read()`` returns a new contiguous tensor of that shape and dtype and keeps nothing; it raises `DataError` when the
    file is damaged. ``file`` and ``name`` (the name in that file, where known) are for messages.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path
    read: Callable[[], Tensor]
    name: str = ""

    @property
    def nbytes(self) -> int:
        """Size of the values in memory, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def to(self, dtype: torch.dtype) -> LazyTensor:
        """The same tensor, converted to ``dtype`` when it is read.

        Reading raises `DataError` when a finite value is too large for ``dtype``, or when torch has no conversion.
        """
        return self if dtype == self.dtype else replace(self, dtype=dtype, read=partial(_convert, self, dtype))

    def __str__(self) -> str:
        return f"{self.file}: tensor {self.name}" if self.name else f"{self.file}: a tensor"


def in_memory(tensors: Mapping[str, Tensor], file: Path) -> dict[str, LazyTensor]:
    """Tensors that are in memory already, as if they were in ``file``, the name used in messages."""
    return {name: LazyTensor(tuple(tensor.shape), tensor.dtype, file, partial(_contiguous, tensor), name)
            for name, tensor in tensors.items()}


def _contiguous(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous()


def _convert(source: LazyTensor, dtype: torch.dtype) -> Tensor:
    values = source.read()
    remedy = f"keep {source.dtype}"
    if values.is_complex() and not dtype.is_complex:
        raise DataError(f"{source} is {source.dtype}, which {dtype} cannot hold: {remedy}")
    try:
        converted = values.to(dtype)
        if not _surely_finite(converted) and _not_finite(converted).any():
            lost = _not_finite(converted) & ~_not_finite(values)
            if lost.any():
                largest = values[lost].abs().max().item()
                raise DataError(f"{source} holds {largest:g}, too large for {dtype}: {remedy}, or use torch.bfloat16")
    except RuntimeError as error:  # quantized types, for instance
        raise DataError(f"{source} cannot be converted from {source.dtype} to {dtype}: {remedy}") from error
    return converted


def _surely_finite(values: Tensor) -> bool:
    """Whether the extreme values are finite: one quick pass, for dtypes that can be compared; False is "unknown"."""
    if not values.numel() or not values.is_floating_point() or values.dtype.itemsize == 1:
        return False
    return all(bool(torch.isfinite(bound)) for bound in values.aminmax())  # NaN is carried into both


def _not_finite(values: Tensor) -> Tensor:
    # The 8-bit types have no arithmetic; some have no infinity either, and overflow to NaN.
    narrow = values.is_floating_point() and values.dtype.itemsize == 1
    return ~torch.isfinite(values.float() if narrow else values)
