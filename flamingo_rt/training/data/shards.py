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
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flamingo_rt.errors import DataError
from flamingo_rt.json_files import parse_json
from flamingo_rt.printable import printable
from flamingo_rt.processing.input_files import open_file
from flamingo_rt.training.data.pages import is_page, page_segments
from flamingo_rt.training.data.row_fields import MOST_CHARACTERS, shown, text_field
from flamingo_rt.training.data.samples import DamagedSample, Said, Sample, SampleKind, Segment, Visual
from flamingo_rt.training.data.tar_members import DamagedArchive, TarMember, members, shown_name
from flamingo_rt.training.data.text_source import decoded_text

Content = Literal["picture", "clip", "json", "txt", ""]
CONTENTS: dict[str, Content] = {
    **dict.fromkeys(("jpg", "jpeg", "png", "webp"), "picture"),
    **dict.fromkeys(("mp4", "webm", "avi", "mov", "mkv", "m4v", "mpg", "mpeg", "gif"), "clip"),
    "json": "json", "txt": "txt",
}
MOST_MEMBERS = 1000  # of one sample
MOST_TEXT = 16_000_000  # bytes of a .txt or .json
MOST_SAMPLE = 512_000_000  # bytes of all pictures and clips of one sample
MOST_SHARDS = 1_000_000
FEW = 10  # texts alone are samples that lack their picture where others are more than so many times as many
WHOLE = -1  # in place of a sample's start: the rest of a shard that is cut short

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(pattern: str) -> list[Path]:
    """The files of a pattern: ``{0000..0099}`` counts, with as many digits as are written, and ``{a,b}`` lists.

    Raises `DataError` for braces that hold neither, and for more than `MOST_SHARDS` files.
    """
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
    from where to where; `WHOLE` as a start stands for what is missing of a shard, with the reason in ``faults``."""

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
        if self.starts[index] == WHOLE:
            raise DamagedSample(printable(str(path)), self.faults[number])
        return _TarSample.read(path, int(self.starts[index]), int(self.ends[index])).as_kind(self.kind)

    def fingerprint(self) -> str:
        """See `SampleSource.fingerprint`: changes with the shards' names and sizes, and with their members' names."""
        return f"{self.kind}, {len(self)} samples in {len(self.paths)} shards, {self.digest[:16]}"


def open_shards(paths: Sequence[Path]) -> Shards:
    """Read the headers of all members of the shards, to find the samples and their kind.

    Raises `DataError` for shards that are missing, hold no sample, or hold samples of several kinds.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(f"{len(missing)} of {len(paths)} shards are missing: "
                        f"{', '.join(str(path) for path in missing[:5])}{more}; check the pattern, or copy them again")
    numbers, starts, ends = array("i"), array("q"), array("q")
    faults: dict[int, str] = {}
    kinds: Counter[SampleKind] = Counter()
    examples: dict[SampleKind, str] = {}
    digest = hashlib.sha256()
    for number, path in enumerate(paths):
        digest.update(f"{path.name}\0{path.stat().st_size}\n".encode("utf-8", "surrogateescape"))
        groups = _Groups(path)
        for group in groups:
            digest.update("\0".join(member.name for member in group).encode("utf-8", "surrogateescape"))
            numbers.append(number)
            starts.append(group[0].header)
            ends.append(group[-1].end)
            kind = groups.kind(group)
            if kind is not None:
                kinds[kind] += 1
                examples.setdefault(kind, f"{path}/{group[0].key}")
        if groups.fault:
            faults[number] = groups.fault
            numbers.append(number)
            starts.append(WHOLE)
            ends.append(WHOLE)
    if len(kinds) == 2 and kinds["text"] * FEW < kinds.total():
        del kinds["text"]
    if len(kinds) > 1:
        found = " and ".join(f"{count:,} of {kind} ({printable(examples[kind])})" for kind, count in kinds.items())
        raise DataError(f"the shards' samples are of several kinds, {found}: put each into shards of their own")
    if not kinds:
        reason = f": {paths[min(faults)]} {faults[min(faults)]}" if faults else ""
        raise DataError(f"{paths[0]}{' and others hold' if len(paths) > 1 else ' holds'} no sample that is known"
                        f"{reason}; a sample is 000001.jpg and 000001.txt, for instance")
    return Shards(tuple(paths), np.array(numbers, np.int32), np.array(starts, np.int64), np.array(ends, np.int64),
                  faults, digest.hexdigest(), next(iter(kinds)))


class _Groups:
    """The samples of one shard, each as its members. ``fault`` says why not all are there, once they are read."""

    def __init__(self, path: Path) -> None:
        self.path, self.fault = path, ""
        self._json_kind: SampleKind | None = None

    def __iter__(self) -> Iterator[list[TarMember]]:
        group: list[TarMember] = []
        try:
            with open_file(self.path) as file:
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
        except DataError as error:  # an empty file
            self.fault = str(error)
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
        if self._json_kind is None:
            try:
                row = _TarSample.read(self.path, group[0].header, group[-1].end).row()
            except DamagedSample:
                return None
            self._json_kind = "pages" if is_page(row) else "pairs" if "picture" in contents else "text"
        return self._json_kind


def content_of(member: TarMember) -> Content:
    """What a member holds, by the end of its name."""
    return CONTENTS.get(member.suffix.rpartition(".")[2].lower(), "")


@dataclass(frozen=True, eq=False)
class _TarSample:
    """The members of one sample; their content is read as it is asked for."""

    path: Path
    name: str
    members: tuple[TarMember, ...]

    @classmethod
    def read(cls, path: Path, start: int, end: int) -> _TarSample:
        """Read the headers between two offsets. Raises `DamagedSample` for members that are no plain files, and too
        many of them."""
        try:
            with path.open("rb") as file:
                found = tuple(itertools.islice(members(file, start, end), MOST_MEMBERS + 1))
        except OSError as error:
            raise DamagedSample(printable(str(path)), f"cannot be read: {error.strerror}") from error
        except DamagedArchive as error:
            raise DamagedSample(printable(str(path)), f"{error}; it has changed since it was opened") from error
        if not found:
            raise DamagedSample(printable(str(path)), "has changed since it was opened")
        name = printable(f"{path}/{found[0].key}")
        if len(found) > MOST_MEMBERS:
            raise DamagedSample(name, f"has more than {MOST_MEMBERS:,} files")
        for member in found:
            if member.fault:
                raise DamagedSample(name, f"{shown_name(member)} {member.fault}")
        return cls(path, name, found)

    def as_kind(self, kind: SampleKind) -> Sample:
        """The sample, read as one of this kind. Raises `DamagedSample` for a sample of another."""
        if kind == "text":
            return Sample(self.name, (self._text(MOST_TEXT),))
        if kind == "pages":
            return Sample(self.name, self._page())
        visual = self._only("picture" if kind == "pairs" else "clip")
        if visual is None:
            raise DamagedSample(self.name, f"has no {'picture' if kind == 'pairs' else 'clip'}")
        return Sample(self.name, (self._visual(visual), *self._caption()))

    def row(self) -> dict[str, Any]:
        """The object in the sample's .json."""
        member = self._only("json")
        if member is None:
            raise DamagedSample(self.name, "has no .json")
        try:
            row = parse_json(self._bytes(member, MOST_TEXT))
        except ValueError as error:
            raise DamagedSample(self.name, f"{shown_name(member)} is not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise DamagedSample(self.name, f"{shown_name(member)} is {shown(row)}, not a JSON object")
        return row

    def _caption(self) -> tuple[Said, ...]:
        row = {} if self._only("txt") or not self._only("json") else self.row()
        if "question" not in row:
            return (self._text(MOST_CHARACTERS),)
        return Said(text_field(row, "question", self.name), learnt=False), Said(text_field(row, "answer", self.name))

    def _text(self, most: int) -> Said:
        """The sample's text, of at most so many characters: its .txt, or what its .json says."""
        member = self._only("txt")
        if member is not None:
            return Said(decoded_text(self._bytes(member, MOST_TEXT), self.name, most))
        row = self.row() if self._only("json") else {}
        for key in ("text", "caption"):
            if key in row:
                return Said(text_field(row, key, self.name, most))
        raise DamagedSample(self.name, "has no text: neither a .txt, nor text or caption in a .json")

    def _page(self) -> tuple[Segment, ...]:
        members = [member for member in self.members if content_of(member) == "picture"]
        if sum(member.size for member in members) > MOST_SAMPLE:
            raise DamagedSample(self.name, f"its pictures have more than {MOST_SAMPLE / 1e6:g} MB")
        by_name = {member.suffix: member for member in members}
        by_name.update({member.name.rpartition("/")[2]: member for member in members})
        read: dict[str, Visual] = {}

        def picture(file: str) -> Visual:
            if file not in by_name:
                raise DamagedSample(self.name, f"the picture {shown(file)} is not among its files")
            if file not in read:
                read[file] = self._visual(by_name[file])
            return read[file]

        return page_segments(self.row(), picture, self.name)

    def _visual(self, member: TarMember) -> Visual:
        kind: Literal["image", "video"] = "image" if content_of(member) == "picture" else "video"
        return Visual(kind, self._bytes(member, MOST_SAMPLE), shown_name(member))

    def _only(self, content: Content) -> TarMember | None:
        """The member with this content, or None. Raises `DamagedSample` for several."""
        found = [member for member in self.members if content_of(member) == content]
        if len(found) > 1:
            raise DamagedSample(self.name, f"has {len(found)} files that could be its {content}: "
                                           f"{', '.join(shown_name(member) for member in found[:3])}")
        return found[0] if found else None

    def _bytes(self, member: TarMember, most: int) -> bytes:
        if member.size > most:
            raise DamagedSample(self.name, f"{shown_name(member)} has more than {most / 1e6:g} MB")
        try:
            with self.path.open("rb") as file:
                file.seek(member.start)
                content = file.read(member.size)
        except OSError as error:
            raise DamagedSample(self.name, f"cannot be read: {error.strerror}") from error
        if len(content) < member.size:
            raise DamagedSample(self.name, f"{shown_name(member)} is cut short; it has changed since it was opened")
        return content
