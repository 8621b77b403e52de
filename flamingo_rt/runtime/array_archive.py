"""Arrays of an untrusted ``.npz`` file whose types and shapes are known beforehand.

Records that are compressed, or longer or shorter than the expected array, are refused before their bytes are read; an
array's header is compared with a pattern, not evaluated.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np

_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    r"\{'descr': '([<>|=][a-zA-Z]\d{1,2})', 'fortran_order': (True|False), 'shape': "
    r"\(((?:\d{1,15}, ?)*\d{0,15})\), \} *\n"
)
_MOST_HEADER_BYTES = 1024
_BLOCK = 1 << 24

# Errors that zipfile, numpy and the fields of a damaged file raise. RuntimeError is zipfile's for encryption; what it
# raises for an unknown compression is a subclass of that.
DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, OverflowError, MemoryError, struct.error,
          zlib.error, zipfile.BadZipFile)


class ArrayArchive:
    """An open ``.npz`` file; a context manager. Methods raise `ValueError` for an array that is not as
    expected, `KeyError` for a missing one, and whatever `zipfile` raises for a damaged archive."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        self._records: dict[str, zipfile.ZipInfo] = {}
        for record in self._zip.infolist():
            if record.filename in self._records:
                self._zip.close()
                raise ValueError(f"{record.filename[:60]!r} is in it twice")
            self._records[record.filename] = record

    def __enter__(self) -> ArrayArchive:
        return self

    def __exit__(self, *exception: object) -> None:
        self._zip.close()

    def vector(self, name: str, dtype: str, longest: int) -> np.ndarray:
        """A one-dimensional array of at least one and at most ``longest`` values."""
        shape = self._stated(name, dtype)
        if len(shape) != 1 or not 1 <= shape[0] <= longest:
            raise ValueError(f"{name} has the shape {list(shape)[:8]}, 1 to {longest} values were expected")
        return self.array(name, dtype, shape)

    def array(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """Read the array of this type and shape, in C order, and compare its checksum; returns a writable copy."""
        record = self._record(name)
        with self._zip.open(record) as file:
            stated, header_bytes = _header(file, name, dtype)
            if stated != shape:
                raise ValueError(f"{name} has the shape {list(stated)[:8]}, {list(shape)} was expected")
            nbytes = math.prod(shape) * np.dtype(dtype).itemsize
            if record.file_size != header_bytes + nbytes:
                raise ValueError(f"{name} has {record.file_size} bytes, {header_bytes + nbytes} were expected")
            array = np.empty(shape, dtype)
            values = array.reshape(-1).view(np.uint8)
            for start in range(0, nbytes, _BLOCK):
                block = values[start : start + _BLOCK]
                if cast("zipfile.ZipExtFile", file).readinto(block.data) != len(block):
                    raise EOFError(f"{name} is cut short")
            file.read(1)  # reaching the end compares the checksum
        return array

    def _stated(self, name: str, dtype: str) -> tuple[int, ...]:
        with self._zip.open(self._record(name)) as file:
            return _header(file, name, dtype)[0]

    def _record(self, name: str) -> zipfile.ZipInfo:
        record = self._records[f"{name}.npy"]
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            raise ValueError(f"{name} is compressed")
        return record


def _header(file: IO[bytes], name: str, dtype: str) -> tuple[tuple[int, ...], int]:
    """The shape in an array's header, and the header's length in bytes; the type must be ``dtype``, the order C."""
    start = file.read(len(_MAGIC) + 2)
    length = int.from_bytes(start[-2:], "little")
    if not start.startswith(_MAGIC) or len(start) != len(_MAGIC) + 2 or length > _MOST_HEADER_BYTES:
        raise ValueError(f"{name} is not an array")
    found = _HEADER.fullmatch(file.read(length).decode("latin-1"))
    if found is None:
        raise ValueError(f"{name} has a header that numpy does not write")
    if found[1] != np.dtype(dtype).str or found[2] != "False":
        raise ValueError(f"{name} is {found[1]}, {np.dtype(dtype).str} in C order was expected")
    return tuple(int(size) for size in found[3].replace(" ", "").split(",") if size), len(start) + length
