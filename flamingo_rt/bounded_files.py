"""Files of strangers, read within a number of bytes."""

from __future__ import annotations

from pathlib import Path

from flamingo_rt.errors import DataError


def check_size(path: Path, most_bytes: int, what: str = "") -> None:
    """Raise `DataError` for a file that is longer than ``most_bytes`` or cannot be found, without opening it."""
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise _unreadable(path, what, error) from error
    if size > most_bytes:
        raise _too_long(path, most_bytes)


def read_bytes(path: Path, most_bytes: int, what: str = "") -> bytes:
    """The content of a file; ``what`` is in it, for the message.

    Raises `DataError` when it cannot be read or has more than ``most_bytes``, which are never read.
    """
    check_size(path, most_bytes, what)
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)  # of a device or a pipe the size is not known before
    except (OSError, ValueError) as error:
        raise _unreadable(path, what, error) from error
    if len(content) > most_bytes:
        raise _too_long(path, most_bytes)
    return content


def read_text(path: Path, most_bytes: int, what: str = "") -> str:
    """As `read_bytes`, the text in UTF-8, its lines ended by ``\\n``. Raises `DataError` for what is no UTF-8 too."""
    try:
        return read_bytes(path, most_bytes, what).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise _unreadable(path, what, error) from error


def _too_long(path: Path, most_bytes: int) -> DataError:
    return DataError(f"{path} has more than {most_bytes / 1e6:g} MB, which no such file needs: it is another file")


def _unreadable(path: Path, what: str, error: Exception) -> DataError:
    source = f"{what} from {path}" if what else path
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return DataError(f"cannot read {source}: {reason}; copy it again")
