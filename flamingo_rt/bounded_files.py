"""Untrusted files, read up to a number of bytes."""

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
    """Read a file. ``what`` names its content in messages, such as "the tokenizer".

    Raises `DataError` when it cannot be read or has more than ``most_bytes``; no more than those are ever read.
    """
    check_size(path, most_bytes, what)
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)  # devices and pipes do not state their size in advance
    except (OSError, ValueError) as error:
        raise _unreadable(path, what, error) from error
    if len(content) > most_bytes:
        raise _too_long(path, most_bytes)
    return content


def read_text(path: Path, most_bytes: int, what: str = "") -> str:
    """Read a UTF-8 text file, line ends as ``\\n``. Raises `DataError` like `read_bytes`, and for other encodings."""
    try:
        return read_bytes(path, most_bytes, what).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise _unreadable(path, what, error) from error


def _too_long(path: Path, most_bytes: int) -> DataError:
    return DataError(f"{path} has more than {most_bytes / 1e6:g} MB, which no such file needs: give the right file")


def _unreadable(path: Path, what: str, error: Exception) -> DataError:
    source = f"{what} from {path}" if what else path
    if isinstance(error, FileNotFoundError):
        return DataError(f"cannot read {source}: it does not exist; check the path")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return DataError(f"cannot read {source}: {reason}; copy it again")
