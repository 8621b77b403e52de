"""Opening the files that a user names, with errors that say why a file cannot be read."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from flamingo_rt.errors import DataError

# A scheme with one slash: `pathlib` drops the second. One letter is a Windows drive.
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|data:")


def open_file(path: str | os.PathLike) -> BinaryIO:
    """Open a file for reading bytes.

    Raises `DataError` when it is missing, a directory, a pipe or device, empty, or may not be read.
    """
    name = os.fsdecode(path)
    try:
        status = os.stat(name)
        # Looked at before opening: opening a pipe nobody writes to never returns.
        if stat.S_ISDIR(status.st_mode):
            raise DataError(f"{name} is a directory; give the path of one file in it")
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{name} is a pipe or a device; save its content to a file and give that file's path")
        if status.st_size == 0:
            raise DataError(f"{name} is empty (0 bytes); was it copied or downloaded completely?")
        return open(name, "rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _missing(name) from error
    except PermissionError as error:
        raise DataError(f"{name} may not be read: permission denied; give this user read access to it") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        if ADDRESS.match(name):  # too long for a name
            raise _missing(name) from error
        raise DataError(f"{name!r} cannot be opened: {getattr(error, 'strerror', None) or error}") from error


def is_empty(path: str | os.PathLike) -> bool:
    """Whether a path is that of a file without content. False for all that `open_file` has more to say about."""
    try:
        return os.path.isfile(path) and os.path.getsize(path) == 0
    except OSError:
        return False


@contextmanager
def reading_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file as `open_file` does, for code that reads it: an error of the system while it does, such as that of a
    failing disk, becomes a `DataError` too."""
    try:
        with open_file(path) as file:
            yield file
    except OSError as error:
        raise DataError(f"{os.fsdecode(path)} cannot be read: {error.strerror or error}; copy it again") from error


def _missing(name: str) -> DataError:
    if ADDRESS.match(name):
        shown = name if len(name) <= 100 else f"{name[:100]}..."
        return DataError(f"{shown!r} is an address, and nothing is fetched: save it to a file first, and give that "
                         "file's path")
    try:
        where = f"the current directory is {os.getcwd()}"
    except OSError:
        where = "the current directory is gone"
    return DataError(f"{name!r} does not exist; check the path ({where})")
