"""Part of a file as a tensor: read on demand into memory of its own, nothing mapped and nothing kept open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flamingo_rt.errors import DataError
from flamingo_rt.weights.lazy import LazyTensor

AGAIN = "copy or download it again"


@dataclass(frozen=True)
class Region:
    """Bytes of a file that hold the values of one or several tensors."""

    file: Path
    offset: int
    nbytes: int

    def tensor(
        self, name: str, dtype: torch.dtype, shape: Sequence[int], strides: Sequence[int] | None = None, first: int = 0
    ) -> LazyTensor:
        """A tensor of ``shape`` and ``dtype`` that begins ``first`` values into the region.

        ``strides`` are in values, contiguous when not given. Raises `DataError` when it would reach past the region.
        """
        if strides is None:
            strides = _contiguous(shape)
        numbers = (*shape, *strides, first)
        if len(shape) != len(strides) or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
            raise DataError(
                f"cannot read {self.file}: tensor {name} has the shape {shape} and strides {strides}; {AGAIN}"
            )
        end = (first + _span(shape, strides)) * dtype.itemsize
        if 0 not in shape and end > self.nbytes:
            raise DataError(
                f"cannot read {self.file}: tensor {name} needs {end} bytes where there are {self.nbytes}; {AGAIN}"
            )
        view = _View(self, name, dtype, tuple(shape), tuple(strides), first)
        return LazyTensor(view.shape, dtype, self.file, view.read, name)


@dataclass(frozen=True)
class _View:
    region: Region
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    first: int

    def read(self) -> Tensor:
        """Read the values, contiguous. Raises `DataError` when the file cannot be read or has become shorter."""
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        file, item = self.region.file, self.dtype.itemsize
        try:
            # Only the bytes from the first to the last value: a slice does not cost the whole storage.
            content = bytearray(_span(self.shape, self.strides) * item)
            with file.open("rb") as opened:
                opened.seek(self.region.offset + self.first * item)
                found = opened.readinto(content)
            if found != len(content):
                raise DataError(
                    f"cannot read {file}: tensor {self.name} needs {len(content)} bytes, {found} are left; {AGAIN}"
                )
            storage = torch.frombuffer(content, dtype=torch.uint8).untyped_storage()
            return torch.empty(0, dtype=self.dtype).set_(storage, 0, self.shape, self.strides).contiguous()
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror or error}; check the file and the disk") from error
        except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError for too little memory
            raise DataError(
                f"{file}: tensor {self.name}, {list(self.shape)} of {self.dtype}, does not fit into memory: "
                "free some and run again"
            ) from error


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides, size = [], 1
    for length in reversed(shape):
        strides.append(size)
        size *= max(length, 1)
    return tuple(reversed(strides))


def _span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Number of values from the first to the last one, both included, of a tensor that is not empty."""
    return 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
