"""One sample of a tar shard: its members, read as a pair, a clip, a page or a text."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flamingo_rt.json_files import parse_json
from flamingo_rt.printable import printable
from flamingo_rt.processing.visuals import CLIP_SUFFIXES, PICTURE_SUFFIXES
from flamingo_rt.training.data.pages import page_segments
from flamingo_rt.training.data.row_fields import MOST_CHARACTERS, shortened, shown, text_field
from flamingo_rt.training.data.samples import DamagedSample, Said, Sample, SampleKind, Segment, Visual
from flamingo_rt.training.data.tar_members import DamagedArchive, TarMember, members, shown_name
from flamingo_rt.training.data.text_source import decoded_text

Content = Literal["picture", "clip", "json", "txt", ""]
CONTENTS: dict[str, Content] = {
    **{suffix[1:]: "picture" for suffix in PICTURE_SUFFIXES},
    **{suffix[1:]: "clip" for suffix in CLIP_SUFFIXES},
    "gif": "clip",
    "json": "json", "txt": "txt",
}
MOST_MEMBERS = 1000  # of one sample
MOST_TEXT = 16_000_000  # bytes of a .txt or .json
MOST_SAMPLE = 512_000_000  # bytes of all pictures and clips of one sample


def content_of(member: TarMember) -> Content:
    """The kind of content that a member's name states, by its end."""
    return CONTENTS.get(member.suffix.rpartition(".")[2].lower(), "")


@dataclass(frozen=True, eq=False)
class TarSample:
    """The members of one sample; their content is read as it is asked for."""

    path: Path
    name: str
    members: tuple[TarMember, ...]

    @classmethod
    def read(cls, path: Path, start: int, end: int) -> TarSample:
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
        name = printable(f"{path}/{shortened(found[0].key)}")
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
