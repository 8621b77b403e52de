"""Files of sysfs and procfs: one value each, which may be missing, refused, or nonsense."""

from __future__ import annotations

import math
from pathlib import Path


class Unreadable(Exception):
    """A file that gives no usable value; the message says why."""


def read_text(file: Path) -> str:
    """The content of a file, stripped. Raises `Unreadable`."""
    try:
        return file.read_bytes().decode(errors="replace").strip("\0 \n\t")
    except OSError as error:  # a sensor that is off gives EAGAIN, EIO or ENODATA
        raise Unreadable(f"{file}: {error.strerror or error}") from error


def read_number(file: Path, least: float, most: float, scale: float = 1.0) -> float:
    """The number in a file times ``scale``. Raises `Unreadable` where there is none, or one outside ``least`` to
    ``most``."""
    text = read_text(file)
    try:
        number = float(text) * scale
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise Unreadable(f"{file}: {text[:40]!r} is no value from {least:g} to {most:g}, times {1 / scale:g}")
    return number
