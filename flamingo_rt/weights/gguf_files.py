"""GGUF files, llama.cpp's format: metadata, and tensors that are dequantized to float32 when they are read.

The header is read here, within limits, because the gguf package's reader follows whatever counts a file states, and
takes seconds for the texts of a vocabulary. The package knows the quantizations.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flamingo_rt.errors import DataError
from flamingo_rt.printable import printable
from flamingo_rt.weights.lazy import LazyTensor
from flamingo_rt.weights.regions import AGAIN, Region

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_HEADER_BYTES = 64_000_000  # vocabularies of 256,000 tokens, with their merges, take some 16 MB
MOST_ITEMS = 1 << 22  # entries of an array, and texts in all
MOST_TENSORS = 100_000
MOST_DIMENSIONS = 4
ALIGNMENT = 32  # bytes, where general.alignment does not say another

BOOL, STRING, ARRAY = 7, 8, 9
SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", BOOL: "<u1", 10: "<u8", 11: "<i8", 12: "<f8"
}


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file: its metadata (numbers, truth values, texts; lists of texts; arrays of numbers), and its tensors,
    float32, whose shapes have the rows first, as torch has them."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, LazyTensor]


def is_gguf(path: Path) -> bool:
    """Whether a file is meant to be GGUF: by its name, or by its first bytes."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return path.suffix.lower() == ".gguf" or file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):
        return False


def open_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file, and none of its values.

    Raises `DataError` when the file is not GGUF, is damaged or cut short, exceeds a limit of this module, or has a
    tensor in a quantization that is not read; `ModuleNotFoundError` without the gguf package.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = _Header(path, file.read(MOST_HEADER_BYTES), size)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    if header.take(len(MAGIC)) != MAGIC:
        raise DataError(f"{path} is not a GGUF file, it begins with other bytes: give the .gguf file of a model")
    version = header.number("<u4")
    if version not in VERSIONS:
        raise DataError(
            f"{path} has GGUF version {version}, {' and '.join(map(str, VERSIONS))} (little-endian) are read: convert "
            "the original model again"
        )
    tensors, keys = header.number("<u8"), header.number("<u8")
    if tensors > MOST_TENSORS:
        raise header.damaged(f"it states {tensors} tensors, at most {MOST_TENSORS} are read")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = header.text()
        if key in metadata:
            raise header.damaged(f"it has the key {printable(key[:80])} twice")
        metadata[key] = header.value(key)
    entries = [header.entry() for _ in range(tensors)]
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment < 2**32 or alignment & (alignment - 1):
        raise header.damaged(f"general.alignment is {printable(str(alignment)[:80])}, not a power of two")
    start = -(-header.position // alignment) * alignment
    return GgufFile(path, metadata, _placed(entries, header, start, alignment))


@dataclass(frozen=True)
class _Entry:
    """A tensor in the header: its shape with rows first, the number of its type, its offset in the data."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


class _Header:
    """The first bytes of a file, read from front to back. Every method raises `DataError` where they end."""

    def __init__(self, path: Path, content: bytes, size: int) -> None:
        self.path, self.size, self.position = path, size, 0
        self._content, self._texts = content, 0

    def damaged(self, why: str) -> DataError:
        """An error that says ``why`` the file cannot be read."""
        return DataError(f"cannot read {self.path}: damaged, or not a GGUF file ({why}); {AGAIN}")

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        end = self.position + count
        if end > len(self._content):
            if self.size > len(self._content):
                raise self.damaged(f"its header has more than {MOST_HEADER_BYTES} bytes")
            raise self.damaged(f"its header ends after {self.size} bytes, {end - self.size} are missing")
        found = self._content[self.position : end]
        self.position = end
        return found

    def number(self, kind: str) -> Any:
        """The next number, of a numpy type; of the float64 numbers that a float32 stands for, the shortest: 1e-05, not
        9.999999747378752e-06."""
        found = np.frombuffer(self.take(np.dtype(kind).itemsize), kind)[0]
        return float(str(found)) if kind == "<f4" else found.item()

    def text(self) -> str:
        """The next text."""
        self._texts += 1
        if self._texts > MOST_ITEMS:
            raise self.damaged(f"it has more than {MOST_ITEMS} texts")
        content = self.take(struct.unpack("<Q", self.take(8))[0])
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"a text is not UTF-8: {content[:40]!r}") from None

    def value(self, key: str) -> Any:
        """The next value, that of ``key``, with its type before it."""
        kind = self.number("<u4")
        if kind == ARRAY:
            kind, count = self.number("<u4"), self.number("<u8")
            if count > MOST_ITEMS or kind not in (STRING, *SCALARS):
                raise self.damaged(f"{printable(key[:80])} is an array of {count} values of type {kind}")
            if kind == STRING:
                return [self.text() for _ in range(count)]
            return np.frombuffer(self.take(count * np.dtype(SCALARS[kind]).itemsize), SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind not in SCALARS:
            raise self.damaged(f"{printable(key[:80])} has the unknown type {kind}")
        number = self.number(SCALARS[kind])
        return bool(number) if kind == BOOL else number

    def entry(self) -> _Entry:
        """The next tensor."""
        name, dimensions = self.text(), self.number("<u4")
        if not 0 < dimensions <= MOST_DIMENSIONS:
            raise self.damaged(f"tensor {printable(name[:80])} has {dimensions} dimensions")
        sizes = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions))
        return _Entry(name, sizes[::-1], self.number("<u4"), self.number("<u8"))


def _placed(entries: list[_Entry], header: _Header, start: int, alignment: int) -> dict[str, LazyTensor]:
    """The tensors by name, from their ``entries``; ``start`` is where the file's data begins."""
    found: dict[str, LazyTensor] = {}
    spans = []
    for entry in entries:
        name = printable(entry.name[:80])
        if entry.name in found:
            raise header.damaged(f"it has tensor {name} twice")
        values, nbytes = _quantization(entry.kind, header.path, name)
        if entry.shape[-1] % values or math.prod(entry.shape) >= 2**62 or entry.offset % alignment:
            raise header.damaged(
                f"tensor {name} has the shape {list(entry.shape)} in blocks of {values}, at offset {entry.offset}"
            )
        region = Region(header.path, start + entry.offset, math.prod(entry.shape) // values * nbytes)
        found[entry.name] = LazyTensor(
            entry.shape, torch.float32, header.path, _Values(region, entry.kind, entry.shape, name).read, name
        )
        spans.append((region.offset, region.offset + region.nbytes, name))
    end, name = max(((end, name) for _, end, name in spans), default=(0, ""))
    if end > header.size:
        raise DataError(
            f"{header.path} is cut short: {end - header.size} bytes are missing, tensor {name} ends at byte {end} of "
            f"{header.size}; {AGAIN}"
        )
    for (_, before, first), (after, _, second) in pairwise(sorted(spans)):
        if after < before:
            raise header.damaged(f"tensors {first} and {second} share bytes")
    return found


@dataclass(frozen=True)
class _Values:
    region: Region
    kind: int
    shape: tuple[int, ...]
    name: str

    def read(self) -> Tensor:
        """The values, float32. Raises `DataError` as `Region`'s tensors do."""
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        stored = self.region.tensor(self.name, torch.uint8, (self.region.nbytes,)).read()
        if not self.region.nbytes:
            return torch.empty(self.shape)
        try:
            rows = stored.numpy().reshape(math.prod(self.shape[:-1]), -1)
            values = dequantize(rows, GGMLQuantizationType(self.kind)).astype(np.float32, copy=False)
            return torch.from_numpy(np.ascontiguousarray(values)).reshape(self.shape)
        except MemoryError as error:
            raise DataError(
                f"{self.region.file}: tensor {self.name}, {list(self.shape)} of float32, does not fit into memory: "
                "free some and run again"
            ) from error


def _quantization(kind: int, path: Path, name: str) -> tuple[int, int]:
    """The values of a block of the type with this number, and its bytes. Raises `DataError` for a type that is not
    read."""
    label, values, nbytes = _known(kind)
    if not values:
        raise DataError(
            f"{path}: tensor {name} is quantized as {label}, which is not read: take the model's file as F16, Q8_0 or "
            "Q4_K_M"
        )
    return values, nbytes


@lru_cache(maxsize=256)
def _known(kind: int) -> tuple[str, int, int]:
    """The name of a type, and the values and bytes of a block; none where the package cannot dequantize it."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        known = GGMLQuantizationType(kind)
    except ValueError:
        return f"type {kind}", 0, 0
    values, nbytes = GGML_QUANT_SIZES[known]
    try:
        dequantize(np.zeros((1, nbytes), np.uint8), known)
    except NotImplementedError:
        return known.name, 0, 0
    return known.name, values, nbytes
