"""Short fingerprints of the files of a source, by which a run that goes on notices that its data is other data.

What is read stays little, since every process of a run reads it when it starts: of a tar shard 128 KiB, some 0.4 GB of
3,000 shards, beside the headers that opening it reads anyway. ``.jsonl`` and ``.txt`` files are read whole when they
are opened, and the sizes of an ImageFolder's pictures are found with their names. Of the pictures and clips that a
``.jsonl`` file names, the size of `MOST_SIZES` at most is asked for, and no content is read. Times of files are not
looked at: a copy of the data is the same data.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_rt.processing.input_files import is_empty, reading_file
from flamingo_rt.training.data.json_lines import JsonLines
from flamingo_rt.training.data.row_fields import file_inside, shortened
from flamingo_rt.training.data.samples import DamagedSample, FilePrint

EDGE = 65_536  # bytes at the beginning and at the end of a shard
MOST_PRINTS = 2048  # of a source: they are in the state, which is written again and again
MOST_SIZES = 10_000  # pictures or clips of a source of lines that are looked at


def edges_print(path: Path) -> str:
    """Fingerprint of a file's size and of its first and last `EDGE` bytes. Raises `DataError` for one that cannot be
    read."""
    if is_empty(path):  # a damaged sample, no reason to stop
        return "empty"
    with reading_file(path) as file:
        size = file.seek(0, 2)
        digest = hashlib.blake2b(str(size).encode(), digest_size=8)
        for start in (0, max(0, size - EDGE)):
            file.seek(start)
            digest.update(file.read(EDGE))
    return digest.hexdigest()


def grouped(prints: Iterable[FilePrint]) -> tuple[FilePrint, ...]:
    """The fingerprints of a source's files, in order; of more than `MOST_PRINTS`, one for each of as many groups of
    neighbours, with the names of the first and the last one."""
    prints = tuple(prints)
    if len(prints) <= MOST_PRINTS:
        return prints
    bounds = np.linspace(0, len(prints), MOST_PRINTS + 1).astype(int).tolist()
    return tuple(_joined(prints[start:stop]) for start, stop in itertools.pairwise(bounds))


def line_prints(lines: JsonLines, root: Path) -> Iterator[FilePrint]:
    """Fingerprints of a file of lines and of the pictures or clips that are named there, in ``root``: their sizes; of
    `MOST_SIZES` at most, in lines that lie evenly among all."""
    yield lines.path.name, lines.digest[:16]
    chosen = np.linspace(0, len(lines) - 1, min(len(lines), MOST_SIZES)).astype(int).tolist()
    most = max(1, MOST_SIZES // len(chosen)) if chosen else 0  # of a line
    for index in chosen:
        name = lines.name(index)
        try:
            names = list(_named(lines.row(index)))[:most]
        except DamagedSample:
            continue
        for file in names:
            try:
                yield shortened(file), str(file_inside(root, file, "the file", name).stat().st_size)
            except (DamagedSample, OSError):
                yield shortened(file), "missing"


def _joined(prints: tuple[FilePrint, ...]) -> FilePrint:
    if len(prints) == 1:
        return prints[0]
    digest = hashlib.blake2b(repr(prints).encode("utf-8", "surrogateescape"), digest_size=8)
    return f"{prints[0][0]} to {prints[-1][0]}", digest.hexdigest()


def _named(row: Mapping[str, Any]) -> Iterator[str]:
    """The names of files in a row of captions, of OBELICS or of MMC4, as far as they are texts."""
    images, infos = row.get("images"), row.get("image_info")
    found = [row.get("image"), row.get("video"), *(images if isinstance(images, list) else ())]
    found += (info.get("image_name") for info in (infos if isinstance(infos, list) else ()) if isinstance(info, dict))
    yield from (name for name in found if isinstance(name, str) and name)
