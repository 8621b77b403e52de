"""Texts: ``.txt`` files, and ``.jsonl`` files with ``{"text": …}`` a line.

A ``.txt`` file is a document. One of more than `PIECE` bytes is cut into several, at a blank line where there is one in
the last half of a piece, else at the end of a line, else between two characters.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from flamingo_rt.printable import printable
from flamingo_rt.processing.input_files import is_empty, reading_file
from flamingo_rt.training.data.file_prints import grouped
from flamingo_rt.training.data.json_lines import MOST_LINE, JsonLines
from flamingo_rt.training.data.row_fields import checked_text, text_field
from flamingo_rt.training.data.samples import DamagedSample, FilePrint, Said, Sample

PIECE = 64_000  # bytes: some 15,000 tokens, more than most contexts


@dataclass(frozen=True, eq=False)
class TextPieces:
    """A ``.txt`` file. ``starts``: int64 [N + 1], where each piece begins, and where the last one ends."""

    path: Path
    starts: np.ndarray
    digest: str

    @classmethod
    def open(cls, path: Path) -> TextPieces:
        """Read a file once, in little memory, to find its pieces. Raises `DataError` for one that cannot be read."""
        digest, starts = hashlib.sha256(), array("q", [0])
        if not is_empty(path):  # an empty file is a damaged sample, no reason to stop
            with reading_file(path) as file:
                for piece in _pieces(file):
                    digest.update(piece)
                    if piece.strip():
                        starts.append(starts[-1] + len(piece))
                    else:  # a part of the piece before it, or left out before the first
                        starts[-1] += len(piece)
        if len(starts) == 1:
            starts.append(starts[0])
        return cls(path, np.array(starts, np.int64), digest.hexdigest())

    def __len__(self) -> int:
        return len(self.starts) - 1

    def sample(self, index: int) -> Sample:
        """Piece ``index``, named by the file and the piece's first byte. Raises `DamagedSample` for one that is no
        UTF-8."""
        start, stop = int(self.starts[index]), int(self.starts[index + 1])
        name = printable(str(self.path)) + (f", from byte {start:,}" if start else "")
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                content = file.read(stop - start)
        except OSError as error:
            raise DamagedSample(name, f"cannot be read: {error.strerror}") from error
        return Sample(name, (Said(decoded_text(content, name)),))


def decoded_text(content: bytes, name: str, most: int = MOST_LINE) -> str:
    """The text of UTF-8 bytes, with ``\\n`` as line ends and without a byte order mark. Raises `DamagedSample`
    for other encodings, and as `checked_text` does."""
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise DamagedSample(name, f"is no UTF-8 at its byte {error.start:,}: convert it") from error
    return checked_text(text, "the text", name, most)


@dataclass(frozen=True, eq=False)
class TextFiles:
    """Several files of text, one after the other. ``ends``: int64 [files], the number of samples up to each one's
    end."""

    parts: tuple[TextPieces | JsonLines, ...]
    ends: np.ndarray
    kind: Literal["text"] = "text"

    @classmethod
    def of(cls, files: Sequence[TextPieces | JsonLines]) -> TextFiles:
        """Join files that were opened."""
        return cls(tuple(files), np.cumsum([len(file) for file in files], dtype=np.int64))

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def sample(self, index: int) -> Sample:
        """See `SampleSource.sample`."""
        number = int(np.searchsorted(self.ends, index, side="right"))
        file = self.parts[number]
        within = index - (int(self.ends[number - 1]) if number else 0)
        if isinstance(file, TextPieces):
            return file.sample(within)
        name = file.name(within)
        return Sample(name, (Said(text_field(file.row(within), "text", name, MOST_LINE)),))

    def fingerprint(self) -> str:
        """See `SampleSource.fingerprint`."""
        digest = hashlib.sha256("".join(f"{file.path.name}\0{file.digest}\n" for file in self.parts).encode(
            "utf-8", "surrogateescape"))
        return f"{self.kind}, {len(self)} documents, {digest.hexdigest()[:16]}"

    @cached_property
    def files(self) -> tuple[FilePrint, ...]:
        """See `SampleSource.files`: each one's whole content."""
        return grouped((file.path.name, file.digest[:16]) for file in self.parts)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """The file's bytes, cut into pieces."""
    rest = b""
    while True:
        rest += file.read(PIECE - len(rest))
        if len(rest) < PIECE:
            if rest:
                yield rest
            return
        cut = _cut(rest)
        yield rest[:cut]
        rest = rest[cut:]


def _cut(content: bytes) -> int:
    """The length of a piece that ends behind a blank line, a line, or a whole character of UTF-8."""
    half = len(content) // 2
    for ending in (b"\n\n", b"\n\r\n", b"\n"):
        found = content.rfind(ending, half)
        if found >= 0:
            return found + len(ending)
    cut = len(content)
    while cut > half and content[cut - 1] & 0xC0 == 0x80:  # bytes that continue a character
        cut -= 1
    return cut - 1 if cut > half and content[cut - 1] >= 0xC0 else len(content)
