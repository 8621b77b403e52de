"""TOML files that users write, and what a misspelt key was meant to be."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flamingo_rt.bounded_files import read_text
from flamingo_rt.errors import UsageError

MOST_BYTES = 1 << 20  # a file of options has a few hundred
MOST_NAMED = 8  # files of a folder that was given in the place of one


def read_toml(file: Path) -> dict[str, Any]:
    """Parse a TOML file, with or without a byte order mark. Raises `DataError` for one that cannot be read,
    `UsageError` for one that is no TOML, and for a folder, with the files in it that could be meant."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    if os.path.isdir(file):
        raise UsageError(f"{file} is a folder: give a .toml file{_in_folder(file)}")
    try:
        table = tomllib.loads(read_text(file, MOST_BYTES).removeprefix("\ufeff"))
        repr(table)  # raises for an integer of thousands of digits, which no message could show
        return table
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is no TOML file: {error}") from error


def _in_folder(folder: Path) -> str:
    """The end of a message that names the TOML files of a folder, where there are some."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".toml") and not name.startswith("."))
    except OSError:
        return ""
    listed = ", ".join([*names[:MOST_NAMED], *(["…"] if len(names) > MOST_NAMED else [])])
    return f"; in it {'are' if len(names) > 1 else 'is'} {listed}" if names else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence for the message about an unknown key: the nearest known ones, or all."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
