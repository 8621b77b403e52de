"""A folder of files in numbered pieces, none above a limit, with the SHA-256 sum of each in a manifest.

Copies may be cut off, lost or damaged on the way: the pieces are checked before anything is made of them, and each that
cannot be used is named. The manifest is written last: a folder without one is not whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flamingo_rt.errors import DataError

MANIFEST = "pack.json"
FORMAT = 1
BLOCK = 1 << 20  # bytes that are read at a time
LISTED = 8  # bad pieces in a message
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # of a file: a name alone, no path
AGAIN = "copy them again from where the pack was made, or make it anew (python -m benchmarks.gpu_run --pack FOLDER)"


@dataclass(frozen=True)
class Piece:
    """A file of the folder."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class PackedFile:
    """A file that is carried: its pieces in order, together ``bytes`` long. ``group`` says what it is for."""

    name: str
    group: str
    bytes: int
    sha256: str
    pieces: tuple[Piece, ...]


def write_pieces(source: Path, folder: Path, group: str, limit: int) -> PackedFile:
    """Write a file into ``folder`` in pieces of at most ``limit`` bytes; a file that is not larger is one piece under
    its own name."""
    size = source.stat().st_size
    count = max(1, -(-size // limit))
    pieces, whole = [], hashlib.sha256()
    with source.open("rb") as file:
        for number in range(1, count + 1):
            name = source.name if count == 1 else f"{source.name}.part-{number:02}-of-{count:02}"
            part, written = hashlib.sha256(), 0
            with (folder / name).open("wb") as out:
                for block in _blocks(file, limit):
                    out.write(block)
                    part.update(block)
                    whole.update(block)
                    written += len(block)
            pieces.append(Piece(name, written, part.hexdigest()))
    return PackedFile(source.name, group, size, whole.hexdigest(), tuple(pieces))


def write_manifest(folder: Path, files: Sequence[PackedFile], about: dict[str, Any]) -> None:
    """Write the manifest: ``about`` is what a reader gets back beside the files."""
    content = {"format": FORMAT, **about, "files": [asdict(file) for file in files]}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> tuple[dict[str, Any], list[PackedFile]]:
    """The manifest of a pack and its files. Raises `DataError` for a folder that is none, or not whole."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give the one that --pack wrote, or a copy of it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder} has no {MANIFEST}, which is written last: the pack is half written or half copied; "
                        f"{AGAIN}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}): it is damaged; {AGAIN}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path} is not of format {FORMAT}: take the checkout that made it, or make the pack anew")
    try:
        files = [
            PackedFile(**{**file, "pieces": tuple(Piece(**piece) for piece in file["pieces"])})
            for file in content.pop("files")
        ]
        named = [name for file in files for name in (file.name, *(piece.file for piece in file.pieces))]
        if not all(NAME.fullmatch(name) for name in named):
            raise ValueError("names of files that are none")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); {AGAIN}") from error
    return content, files


def check_pieces(folder: Path, files: Sequence[PackedFile]) -> None:
    """Raise `DataError` that names each piece which is missing, cut off or damaged."""
    bad = [f"{piece.file} {why}" for file in files for piece in file.pieces if (why := _fault(folder, piece))]
    if bad:
        more = f", and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
        raise DataError(f"{len(bad)} pieces in {folder} cannot be used: {', '.join(bad[:LISTED])}{more}; {AGAIN}")


def join(folder: Path, packed: PackedFile, target: Path) -> Path:
    """Put a file's pieces together in the folder ``target``, and give its path. Raises `DataError` unless that is the
    file that was packed."""
    whole, path = hashlib.sha256(), target / packed.name
    with path.open("wb") as out:
        for piece in packed.pieces:
            with (folder / piece.file).open("rb") as file:
                for block in _blocks(file, piece.bytes):
                    out.write(block)
                    whole.update(block)
    if whole.hexdigest() != packed.sha256:
        raise DataError(f"the pieces of {packed.name} do not make up the file that was packed: make the pack anew")
    return path


def _fault(folder: Path, piece: Piece) -> str | None:
    path = folder / piece.file
    try:
        size = path.stat().st_size
        if size != piece.bytes:
            return f"has {size:,} of {piece.bytes:,} bytes"
        found = hashlib.sha256()
        with path.open("rb") as file:
            for block in _blocks(file, size):
                found.update(block)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if found.hexdigest() == piece.sha256 else "is damaged (its SHA-256 sum is another)"


def _blocks(file: Any, bytes: int) -> Iterator[bytes]:
    """The next ``bytes`` of an open file, at most, in blocks."""
    while bytes > 0 and (block := file.read(min(BLOCK, bytes))):
        yield block
        bytes -= len(block)
