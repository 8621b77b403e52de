"""Fields of rows that strangers wrote: texts and names of files, checked before they are used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flamingo_rt.printable import printable
from flamingo_rt.training.data.samples import DamagedSample, EmptyText, MissingFile

MOST_CHARACTERS = 100_000  # of a caption, a question or an answer: a hundred times what a document holds
SHOWN_CHARACTERS = 80


def shown(value: Any) -> str:
    """A value of a row for a message: short, and safe to print."""
    text = repr(value)
    return printable(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}...")


def shortened(text: str) -> str:
    """A long text with "…" for its middle, so that names with the same beginning or the same end stay different."""
    half = SHOWN_CHARACTERS // 2
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: half - 1]}…{text[-half:]}"


def text_field(row: Mapping[str, Any], key: str, name: str, most: int = MOST_CHARACTERS) -> str:
    """The text under ``key`` of a row of the sample ``name``; see `text_value`."""
    return text_value(row.get(key), key, name, most)


def text_value(value: Any, what: str, name: str, most: int = MOST_CHARACTERS) -> str:
    """``value``, which must be a text; see `checked_text`."""
    if not isinstance(value, str):
        raise DamagedSample(name, f"{what} is {shown(value)}, not a text")
    return checked_text(value, what, name, most)


def checked_text(text: str, what: str, name: str, most: int = MOST_CHARACTERS) -> str:
    """``text`` as it is. Raises `DamagedSample` for a text of spaces alone, of more than ``most`` characters, or with
    half of a surrogate pair, which JSON can hold and UTF-8 cannot."""
    if not text.strip():
        raise EmptyText(name, f"{what} is empty")
    if len(text) > most:
        raise DamagedSample(name, f"{what} has {len(text):,} characters, more than {most:,}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DamagedSample(name, f"{what} is not valid Unicode at character {error.start}") from error
    return text


def file_inside(root: Path, value: Any, what: str, name: str) -> Path:
    """The file that a row calls ``value``, relative to ``root``, which must be resolved.

    Raises `MissingFile` when there is no such file, and `DamagedSample` for a name that is no text, is absolute, holds
    ``..``, or leads out of ``root`` through a link.
    """
    if not isinstance(value, str) or not value:
        raise DamagedSample(name, f"{what} is {shown(value)}, not the name of a file")
    relative = Path(value)
    if relative.anchor:
        raise DamagedSample(name, f"{what} {shown(value)} is an absolute path: give it relative to {root}")
    if ".." in relative.parts:
        raise DamagedSample(name, f"{what} {shown(value)} leads out of {root}: put the file inside")
    try:
        path = (root / relative).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle; ValueError: no file's name
        raise MissingFile(name, f"{what} {shown(value)} does not exist in {root}") from error
    if not path.is_relative_to(root):
        raise DamagedSample(name, f"{what} {shown(value)} is a link that leads out of {root}: put the file inside")
    if not path.is_file():
        raise MissingFile(name, f"{what} {shown(value)} in {root} is no file")
    return path
