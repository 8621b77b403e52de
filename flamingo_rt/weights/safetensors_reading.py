"""Tensors of safetensors files, read by the safetensors library.

A file is opened anew for each tensor. The library maps it, and what was read stays in this process's resident memory as
long as it is open: of a file of 1 GB, read tensor by tensor, all of it; opened anew each time, one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flamingo_rt.errors import DataError
from flamingo_rt.weights.lazy import LazyTensor
from flamingo_rt.weights.regions import AGAIN

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Room for 80,000 tensors at 200 bytes each; the largest models have some thousands. Parsing takes ten times as much.
MOST_HEADER_BYTES = 16_000_000


def open_safetensors(file: Path) -> dict[str, LazyTensor]:
    """Tensors of a safetensors file by name, in the file's order, with nothing read yet.

    Raises `DataError` when the file is damaged or has a type that torch lacks, `OSError` when it can't be read.
    """
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
    if length > MOST_HEADER_BYTES:
        raise DataError(
            f"cannot read {file}: damaged, or not a safetensors file (its header has {length} bytes, at most "
            f"{MOST_HEADER_BYTES} are read); {AGAIN}"
        )
    found = {}
    with _opened(file) as opened:
        for name in opened.offset_keys():
            part = opened.get_slice(name)
            dtype = part.get_dtype()
            if dtype not in DTYPES:
                raise DataError(f"{file}: tensor {name} is {dtype}, which is not read: convert it first")
            found[name] = LazyTensor(tuple(part.get_shape()), DTYPES[dtype], file, partial(_read, file, name), name)
    return found


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open a file by the library, which checks its header: sizes, overlaps, and the file's length."""
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}; check the file and the disk") from error
    except (SafetensorError, ValueError) as error:
        raise DataError(f"cannot read {file}: damaged, or not a safetensors file ({error}); {AGAIN}") from error


def _read(file: Path, name: str) -> Tensor:
    """Read one tensor. Raises `DataError` when the file is gone, or no longer holds it, or memory is too small."""
    try:
        with _opened(file) as opened:
            return opened.get_tensor(name)
    except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError for too little memory
        raise DataError(f"{file}: tensor {name} does not fit into memory: free some and run again ({error})") from error
