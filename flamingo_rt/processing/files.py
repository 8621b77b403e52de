"""Opening the files a user names, with an error that says why one cannot be read."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

from flamingo_rt.errors import DataError


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
        raise DataError(f"{name!r} does not exist; check the path (the current directory is {os.getcwd()})") from error
    except PermissionError as error:
        raise DataError(f"{name} may not be read: permission denied; give this user read access to it") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise DataError(f"{name!r} cannot be opened: {getattr(error, 'strerror', None) or error}") from error
