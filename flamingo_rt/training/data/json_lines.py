"""JSONL files: an index of their lines, which are read one by one as they are needed."""

from __future__ import annotations

import codecs
import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from flamingo_rt.errors import DataError
from flamingo_rt.json_files import parse_json
from flamingo_rt.printable import printable
from flamingo_rt.processing.input_files import reading_file
from flamingo_rt.training.data.row_fields import shown
from flamingo_rt.training.data.samples import DamagedSample

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
MOST_LINE = 16_000_000  # bytes; pages with long texts have some 100 KB


@dataclass(frozen=True, eq=False)
class JsonLines:
    """The lines of a file that are not blank. ``starts`` and ``numbers``: int64 [N], where a line begins and which one
    it is, counted from 1. ``counts``: how many lines there are of each kind. ``digest``: of the whole file."""

    path: Path
    starts: np.ndarray
    numbers: np.ndarray
    counts: Mapping[str, int]
    digest: str

    @classmethod
    def open(cls, path: Path, kind_of: Callable[[bytes], str]) -> JsonLines:
        """Read a file once, in little memory, to find its lines; ``kind_of`` tells what a line is.

        Raises `DataError` for a file that is missing, empty, in UTF-16, or cannot be read.
        """
        starts, numbers = array("q"), array("q")
        counts: Counter[str] = Counter()
        digest = hashlib.sha256()
        with reading_file(path) as file:
            for number, start, line in _lines(file, digest.update):
                if start == 0 and line.startswith(UTF16_MARKS):
                    raise DataError(f"{path} is in UTF-16: convert it to UTF-8")
                starts.append(start)
                numbers.append(number)
                counts[kind_of(line)] += 1
        return cls(path, np.array(starts, np.int64), np.array(numbers, np.int64), counts, digest.hexdigest())

    def __len__(self) -> int:
        return len(self.starts)

    def name(self, index: int) -> str:
        """The name of a line in messages: the file and the line's number."""
        return f"{printable(str(self.path))}:{self.numbers[index]}"

    def row(self, index: int) -> dict[str, Any]:
        """The object in line ``index``. Raises `DamagedSample` for a line that is no JSON object, is longer than
        `MOST_LINE`, or cannot be read."""
        name = self.name(index)
        try:
            with self.path.open("rb") as file:
                file.seek(int(self.starts[index]))
                line = file.readline(MOST_LINE + 1)
        except OSError as error:
            raise DamagedSample(name, f"cannot be read: {error.strerror}") from error
        if len(line) > MOST_LINE:
            raise DamagedSample(name, f"the line has more than {MOST_LINE / 1e6:g} MB")
        try:
            row = parse_json(line)
        except json.JSONDecodeError as error:  # its own text counts lines within this one
            raise DamagedSample(name, f"is not valid JSON: {error.msg}, at character {error.pos + 1}") from error
        except ValueError as error:
            raise DamagedSample(name, f"is not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise DamagedSample(name, f"is {shown(row)}, not a JSON object")
        return row


def _lines(file: BinaryIO, read: Callable[[bytes], None]) -> Iterator[tuple[int, int, bytes]]:
    """(number, offset, content) of each line that is not blank; of one that is longer than `MOST_LINE`, its beginning.
    ``read`` gets everything that is in the file."""
    number = offset = 0
    continued = False
    while line := file.readline(MOST_LINE + 1):
        read(line)
        if not continued:
            number += 1
            content = line.removeprefix(codecs.BOM_UTF8) if offset == 0 else line
            if len(line) > MOST_LINE or content.strip():
                yield number, offset, line
        continued = not line.endswith(b"\n")
        offset += len(line)
