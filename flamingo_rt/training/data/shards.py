"""Tar shards in webdataset's format: members whose names agree up to the first dot of their last part are one sample.

    000001.jpg 000001.txt      a picture and its caption; or 000001.json with "text" or "caption", or "question" and
                               "answer"
    000001.mp4 000001.txt      a clip
    000001.json 000001.0.jpg   a page, whose pictures are named in the row: "0.jpg" or "000001.0.jpg" (`pages.py`)
    000001.txt                 a text; or 000001.json with "text"

Members of other kinds are not looked at; nothing is unpickled, and nothing is written to a folder. A shard that is cut
short gives the samples that are whole, and one damaged sample for the rest.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from flamingo_rt.errors import DataError
from flamingo_rt.printable import printable
from flamingo_rt.processing.input_files import is_empty, reading_file
from flamingo_rt.training.data.file_prints import edges_print, grouped
from flamingo_rt.training.data.pages import is_page
from flamingo_rt.training.data.row_fields import shortened
from flamingo_rt.training.data.samples import DamagedSample, FilePrint, Sample, SampleKind
from flamingo_rt.training.data.tar_members import DamagedArchive, TarMember, members
from flamingo_rt.training.data.tar_samples import MOST_MEMBERS, TarSample, content_of

logger = logging.getLogger(__name__)

MOST_SHARDS = 1_000_000
FEW_NAMED = 5  # shards in a message
FEW = 10  # texts alone are samples that lack their picture where others are more than so many times as many
REST = -1  # in place of a sample's start: the rest of a shard that is cut short

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(pattern: str) -> list[Path]:
    """The files of a pattern: ``{0000..0099}`` counts, with as many digits as are written, and ``{a,b}`` lists.

    Raises `DataError` for braces that hold neither, for ``*``, and for more than `MOST_SHARDS` files.
    """
    if "*" in pattern:
        raise DataError(f"{pattern} does not exist, and * is not expanded: write {{0000..0099}}, or give the folder")
    pieces = _BRACES.split(pattern)  # every second one is what braces hold
    choices: list[Iterable[str]] = []
    count = 1
    for place, piece in enumerate(pieces):
        if place % 2 == 0:
            choices.append([piece])
            continue
        counted = _RANGE.fullmatch(piece)
        if counted is not None and len(counted[1]) <= 12 >= len(counted[2]) and int(counted[1]) <= int(counted[2]):
            first, last = int(counted[1]), int(counted[2])
            count *= last - first + 1
            choices.append(f"{number:0{len(counted[1])}}" for number in range(first, last + 1))
        elif "," in piece:
            choices.append(piece.split(","))
            count *= piece.count(",") + 1
        else:
            raise DataError(f"{{{piece}}} in {pattern} is neither a range such as {{0000..0099}} nor a list such as "
                            "{a,b}")
        if count > MOST_SHARDS:
            raise DataError(f"{pattern} means more than {MOST_SHARDS:,} shards: give fewer")
    return [Path("".join(parts)) for parts in itertools.product(*choices)]


@dataclass(frozen=True, eq=False)
class Shards:
    """Samples of tar shards. ``numbers`` int32 [N], ``starts`` and ``ends`` int64 [N]: in which shard a sample is, and
    from where to where; `REST` as a start stands for what is missing of a shard, with the reason in ``faults``."""

    paths: tuple[Path, ...]
    numbers: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    faults: dict[int, str]
    digest: str
    kind: SampleKind

    def __len__(self) -> int:
        return len(self.numbers)

    def sample(self, index: int) -> Sample:
        """See `SampleSource.sample`. Only this sample's members are read."""
        number = int(self.numbers[index])
        path = self.paths[number]
        if self.starts[index] == REST:
            raise DamagedSample(printable(str(path)), self.faults[number])
        return TarSample.read(path, int(self.starts[index]), int(self.ends[index])).as_kind(self.kind)

    def fingerprint(self) -> str:
        """See `SampleSource.fingerprint`: changes with the names and sizes of the shards and of their members."""
        return f"{self.kind}, {len(self)} samples in {len(self.paths)} shards, {self.digest[:16]}"

    @cached_property
    def files(self) -> tuple[FilePrint, ...]:
        """See `SampleSource.files`: the size, the beginning and the end of each shard."""
        return grouped((path.name, edges_print(path)) for path in self.paths)


def open_shards(paths: Sequence[Path]) -> Shards:
    """Read the headers of all members of the shards, to find the samples and their kind.

    Logs a warning of shards that are not whole. Raises `DataError` for shards that are missing or cannot be read, hold
    no sample, or hold samples of several kinds.
    """
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        more = f" and {len(missing) - FEW_NAMED} more" if len(missing) > FEW_NAMED else ""
        named = ", ".join(str(path) for path in missing[:FEW_NAMED])
        raise DataError(f"{len(missing)} of {len(paths)} shards are missing: {named}{more}; check the pattern, or copy "
                        "them again")
    index = _Index()
    for path in paths:
        index.add(path)
    kind = index.kind()
    if index.faults:
        _warn(paths, index.faults)
    return Shards(tuple(paths), np.array(index.numbers, np.int32), np.array(index.starts, np.int64),
                  np.array(index.ends, np.int64), index.faults, index.digest.hexdigest(), kind)


def _warn(paths: Sequence[Path], faults: Mapping[int, str]) -> None:
    """Log which shards are not whole: each is one damaged sample, however many samples it lacks."""
    named = "; ".join(printable(f"{paths[number]} {fault}") for number, fault in list(faults.items())[:FEW_NAMED])
    more = f"; and {len(faults) - FEW_NAMED} more" if len(faults) > FEW_NAMED else ""
    logger.warning("%d of %d shards are not whole, and samples that they lack are not counted: %s%s", len(faults),
                   len(paths), named, more)


class _Index:
    """The index that `Shards` keeps, collected shard by shard."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.numbers, self.starts, self.ends = array("i"), array("q"), array("q")
        self.faults: dict[int, str] = {}
        self.digest = hashlib.sha256()
        self._kinds: Counter[SampleKind] = Counter()
        self._examples: dict[SampleKind, tuple[Path, str]] = {}  # shard and key

    def add(self, path: Path) -> None:
        """Read the headers of one shard."""
        self._hash(f"{path.name}\0{path.stat().st_size}\n")
        groups = _Groups(path)
        for group in groups:
            if not any(content_of(member) or member.fault for member in group):
                continue
            self._hash("\0".join(f"{member.name}\0{member.size}" for member in group))
            self._add_sample(group[0].header, group[-1].end)
            kind = groups.kind(group)
            if kind is not None:
                self._kinds[kind] += 1
                self._examples.setdefault(kind, (path, group[0].key))
        if groups.fault:
            self.faults[len(self.paths)] = groups.fault
            self._add_sample(REST, REST)
        self.paths.append(path)

    def kind(self) -> SampleKind:
        """The kind of all samples. Raises `DataError` for several, and for none."""
        kinds = self._kinds
        if len(kinds) == 2 and kinds["text"] * FEW < kinds.total():
            del kinds["text"]
        if len(kinds) > 1:
            names = {kind: printable(f"{self._examples[kind][0]}/{shortened(self._examples[kind][1])}")
                     for kind in kinds}
            found = " and ".join(f"{count:,} of {kind} ({names[kind]})" for kind, count in kinds.items())
            if len({self._examples[kind] for kind in kinds}) < len(kinds):
                raise DataError(f"the shards' samples are of several kinds, {found}, and one of these stands in two "
                                "places: the files of a sample must follow each other; pack them again in the order of "
                                "their names, as tar --sort=name does")
            raise DataError(f"the shards' samples are of several kinds, {found}: put each into shards of their own")
        if not kinds:
            reason = "".join(f": {self.paths[number]} {fault}" for number, fault in [*self.faults.items()][:1])
            raise DataError(f"{self.paths[0]}{' and others hold' if len(self.paths) > 1 else ' holds'} no sample that "
                            f"is known{reason}; a sample is 000001.jpg and 000001.txt, for instance")
        return next(iter(kinds))

    def _add_sample(self, start: int, end: int) -> None:
        self.numbers.append(len(self.paths))
        self.starts.append(start)
        self.ends.append(end)

    def _hash(self, text: str) -> None:
        self.digest.update(text.encode("utf-8", "surrogateescape"))


class _Groups:
    """The samples of one shard, each as its members. ``fault`` says why not all are there, once they are read."""

    def __init__(self, path: Path) -> None:
        self.path, self.fault = path, ""
        self._rows_are_pages: bool | None = None

    def __iter__(self) -> Iterator[list[TarMember]]:
        """Raises `DataError` for a shard that cannot be read."""
        if is_empty(self.path):
            self.fault = "is empty (0 bytes): copy it again"
            return
        group: list[TarMember] = []
        try:
            with reading_file(self.path) as file:
                for member in members(file):
                    if group and member.key != group[0].key:
                        yield group
                        group = []
                    if len(group) <= MOST_MEMBERS:
                        group.append(member)
                    else:  # refused when it is read
                        group[-1] = member
        except DamagedArchive as error:
            self.fault = str(error)
            if error.cut_key is None or not group or error.cut_key == group[0].key:
                return  # the last sample may lack the members that would have followed
        if group:
            yield group

    def kind(self, group: list[TarMember]) -> SampleKind | None:
        """The kind of a sample as far as its members' names tell; a row of JSON is read in the first one that has
        it. None for a sample without anything that is known."""
        contents = {content_of(member) for member in group}
        if "clip" in contents:
            return "videos"
        if "json" not in contents:
            return "pairs" if "picture" in contents else "text" if "txt" in contents else None
        if "txt" in contents:  # the row is what else is known of the picture
            return "pairs" if "picture" in contents else "text"
        if self._rows_are_pages is None:
            try:
                row = TarSample.read(self.path, group[0].header, group[-1].end).row()
            except DamagedSample:
                return None
            self._rows_are_pages = is_page(row)
        return "pages" if self._rows_are_pages else "pairs" if "picture" in contents else "text"
