"""Text files of strangers, within a number of bytes."""

from __future__ import annotations

from pathlib import Path

from flamingo_rt.errors import DataError


def check_size(path: Path, most_bytes: int, what: str = "") -> None:
    """Raise `DataError` for a file that is longer than ``most_bytes`` or cannot be found, without opening it."""
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise _unreadable(path, what, error) from error
    if size > most_bytes:
        raise _too_long(path, most_bytes)


def read_text(path: Path, most_bytes: int, what: str = "") -> str:
    """The text of a file in UTF-8, its lines ended by ``\\n``; ``what`` is in it, for the message.

    Raises `DataError` when it cannot be read, is no UTF-8 or has more than ``most_bytes``, which are never read.
    """
    check_size(path, most_bytes, what)
    try:
        with path.open("rb") as file:  # of a device or a pipe the size is not known before
            content = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise _too_long(path, most_bytes)
        return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, ValueError) as error:
        raise _unreadable(path, what, error) from error


def _too_long(path: Path, most_bytes: int) -> DataError:
    return DataError(f"{path} has more than {most_bytes / 1e6:g} MB, which no such file needs: it is another file")


def _unreadable(path: Path, what: str, error: Exception) -> DataError:
    source = f"{what} from {path}" if what else path
    return DataError(f"cannot read {source}: {error}; copy it again")
