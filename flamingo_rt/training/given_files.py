"""The files of given weights, from which frozen tensors are read a second time at the end of a run: they must be those
that it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flamingo_rt.errors import DataError
from flamingo_rt.weights.lazy import LazyTensor

Stamp = tuple[int, int, int]  # inode, size, and time of the last change in nanoseconds


@dataclass(frozen=True)
class GivenFiles:
    """Stamps of the files in which tensors were found, as the file system has them; None of one that is no file.

    A folder that is replaced has files of other numbers, a file that is written again another time. Reading all weights
    again for a hash would be surer only of a file that was changed and had its time set back.
    """

    stamps: Mapping[Path, Stamp | None]

    @classmethod
    def of(cls, tensors: Mapping[str, LazyTensor]) -> GivenFiles:
        """Look at the files of these tensors."""
        return cls({file: _stamp(file) for file in {tensor.file for tensor in tensors.values()}})

    def require_unchanged(self) -> None:
        """Raise `DataError` that names a file which is another one by now."""
        for file in sorted(self.stamps):
            if _stamp(file) != self.stamps[file]:
                raise DataError(
                    f"{file} was replaced or changed while this run was trained on it, and the frozen weights of the "
                    "result would be others: nothing was written, and the state is kept. Put the file back as it was, "
                    "and go on with --resume"
                )


def _stamp(file: Path) -> Stamp | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
