"""PyTorch's zip files, plain and TorchScript: the place of each record's bytes."""

from __future__ import annotations

import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from flamingo_rt.errors import DataError
from flamingo_rt.weights.regions import AGAIN, Region

PICKLE = "data.pkl"
MOST_PICKLE_BYTES = 256_000_000  # 80B parameters and their optimizer need some 20 MB
# Deflation hardly shrinks weights, sparse ones more; beyond this factor a record is a zip bomb.
MOST_INFLATION, FREE_BYTES = 200, 64_000_000
_LOCAL_HEADER = 30  # bytes before the name; the lengths of the name and the extra field are its last four


@dataclass(frozen=True)
class Archive:
    """A zip file with ``data.pkl`` and storages.

    ``regions`` has the records that are not compressed, in the file's order, by their names without the archive's
    folder; ``compressed`` has the names of the others.
    """

    file: Path
    folder: str
    regions: dict[str, Region]
    compressed: tuple[str, ...]

    @property
    def is_torchscript(self) -> bool:
        return "constants.pkl" in {*self.regions, *self.compressed}

    @property
    def is_native(self) -> bool:
        """Whether the numbers have this machine's byte order; files without a mark are little-endian."""
        order = self.content("byteorder") if "byteorder" in {*self.regions, *self.compressed} else b"little"
        return order == sys.byteorder.encode()

    def content(self, record: str) -> bytes:
        """Read a small record and compare its checksum. Raises `DataError` when it is damaged or too large."""
        try:
            with zipfile.ZipFile(self.file) as opened, opened.open(self.folder + record) as stream:
                content = stream.read(MOST_PICKLE_BYTES)
                if stream.read(1):
                    raise ValueError(f"{record} has more than {MOST_PICKLE_BYTES / 1e6:g} MB")
                return content
        except _DAMAGE as error:
            raise _damaged(self.file, error) from error


# Errors that zipfile raises for damage; RuntimeError is that for encryption, and the base of that for an unknown
# compression.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, RuntimeError)


def _damaged(file: Path, error: Exception) -> DataError:
    return DataError(f"cannot read {file}: it begins like a zip file but is damaged or cut short ({error}); {AGAIN}")


def _check_entries(entries: list[zipfile.ZipInfo], file_bytes: int) -> None:
    """Raise `ValueError` for records that torch's reader could confuse, or whose stated length is impossible."""
    # Torch's reader ignores case, and takes the first of two records.
    names = {entry.filename.lower() for entry in entries}
    pickles = [name for name in names if name == PICKLE or name.endswith(f"/{PICKLE}")]
    if len(names) != len(entries) or len(pickles) > 1:
        raise ValueError("records of the same name")
    for entry in entries:
        if entry.compress_size > file_bytes or entry.header_offset > file_bytes:
            raise ValueError("a record is longer than the file")
        if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
            raise ValueError("a record has two lengths")
    inflated = sum(entry.file_size for entry in entries)
    if inflated > FREE_BYTES + MOST_INFLATION * file_bytes:
        raise ValueError(f"{inflated} bytes when it is unpacked, from {file_bytes}")


def open_archive(file: Path) -> Archive:
    """List a zip file. Raises `DataError` when it is damaged or not PyTorch's, `OSError` when it can't be read."""
    regions: dict[str, Region] = {}
    compressed = []
    try:
        with zipfile.ZipFile(file) as listing, file.open("rb") as opened:
            entries = sorted(listing.infolist(), key=lambda entry: entry.header_offset)
            _check_entries(entries, opened.seek(0, 2))
            inside = [entry.filename for entry in entries if entry.filename.count("/") == 1]
            folder = next((name.removesuffix(PICKLE) for name in inside if name.endswith(f"/{PICKLE}")), None)
            if folder is None:
                raise DataError(f"{file} is a zip file without {PICKLE}, not one that PyTorch wrote: unpack it first")
            for entry in entries:
                name = entry.filename.removeprefix(folder)
                if entry.compress_type != zipfile.ZIP_STORED:
                    compressed.append(name)
                    continue
                # The directory has the offset of the record's own header; only that header has its own length.
                opened.seek(entry.header_offset)
                header = opened.read(_LOCAL_HEADER)
                if len(header) < _LOCAL_HEADER:
                    raise zipfile.BadZipFile(f"{entry.filename} has no header")
                lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
                regions[name] = Region(file, entry.header_offset + _LOCAL_HEADER + lengths, entry.file_size)
    except _DAMAGE as error:
        raise _damaged(file, error) from error
    return Archive(file, folder, regions, tuple(compressed))
