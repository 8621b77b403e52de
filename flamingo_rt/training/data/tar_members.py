"""Members of a tar archive that a stranger wrote: where they are and what they are called, read from headers alone.

The standard library's `tarfile` ends silently at a damaged header, as if the archive were whole, and reads extended
headers into memory whatever size they claim; here both are errors. A header's layout is that of POSIX's ustar, with the
long names of GNU and of pax.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from flamingo_rt.printable import printable
from flamingo_rt.training.data.row_fields import shortened

BLOCK = 512
MOST_EXTENDED = 65_536  # bytes of an extended header; real ones have a few hundred
BEHIND_THE_END = 65_536  # bytes looked at: writers fill up to 10,240 with zeros

_REGULAR = (b"0", b"\0", b"7")
_REFUSED = {b"1": "is a link", b"2": "is a link", b"3": "is a device", b"4": "is a device", b"6": "is a pipe"}
_PAX_RECORD = re.compile(rb"(\d{1,6}) ([^=\n]{1,100})=")


class DamagedArchive(Exception):
    """An archive is not whole. ``cut_key``: the key of the member whose content is not all there, where its header
    is."""

    def __init__(self, reason: str, cut_key: str | None = None) -> None:
        super().__init__(reason)
        self.cut_key = cut_key


@dataclass(frozen=True, slots=True)
class TarMember:
    """One file in an archive: its name, the offsets of its first header and of its content, its size in bytes.
    ``fault`` says why it must not be read, if it is no plain file."""

    name: str
    header: int
    start: int
    size: int
    fault: str = ""

    @property
    def end(self) -> int:
        """The offset behind the member."""
        return self.start + _whole_blocks(self.size)

    @property
    def key(self) -> str:
        """The part of the name that the members of one sample have in common: up to the first dot of its last part."""
        folder, slash, last = self.name.rpartition("/")
        return folder + slash + last.split(".", 1)[0]

    @property
    def suffix(self) -> str:
        """The part of the name behind the key and its dot."""
        return self.name[len(self.key) + 1 :]


def members(file: BinaryIO, start: int = 0, stop: int | None = None) -> Iterator[TarMember]:
    """The members from one offset to another, without folders and files whose names begin with a dot.

    Raises `DamagedArchive` for a header that is damaged, and, without ``stop``, for an archive that is cut short or
    goes on behind its end.
    """
    length = file.seek(0, 2)
    at = header = start
    extended = _Extended()
    while at < (length if stop is None else stop):
        file.seek(at)
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            break
        if not block.strip(b"\0"):
            if stop is None and file.read(BEHIND_THE_END).strip(b"\0"):
                raise DamagedArchive("goes on behind its end: archives were joined; keep each in a file of its own")
            return
        name, size, kind = _parsed(block, at)
        member = extended.member(name, size, kind, header, at + BLOCK)
        at = member.end
        if at > length:
            raise DamagedArchive(f"is cut short: it ends at byte {length:,}, within a file; copy it again",
                                 member.key if kind in _REGULAR else None)
        if kind in (b"L", b"x"):
            extended = extended.with_header(kind, file.read(min(size, MOST_EXTENDED + 1)))
        elif kind not in (b"K", b"g"):  # all of these belong to the member behind them
            if member.fault or (kind in _REGULAR and not member.name.rpartition("/")[2].startswith(".")):
                yield member
            extended, header = _Extended(), at
    if stop is None:
        raise DamagedArchive(f"is cut short: it ends at byte {length:,}, without an end of the archive; copy it again")


@dataclass(frozen=True)
class _Extended:
    """The name and size that extended headers give to the member behind them."""

    name: str = ""
    size: int | None = None
    fault: str = ""

    def member(self, name: str, size: int, kind: bytes, header: int, start: int) -> TarMember:
        """The member with this name, size and type in its own header, which ends at ``start``."""
        if kind not in _REGULAR:
            has_content = kind not in _REFUSED and kind != b"5"
            return TarMember(name, header, start, size if has_content else 0, _REFUSED.get(kind, ""))
        name = _plain(self.name or name)
        return TarMember(name, header, start, size if self.size is None else self.size,
                         self.fault or _fault_of_name(name))

    def with_header(self, kind: bytes, content: bytes) -> _Extended:
        if len(content) > MOST_EXTENDED:
            return _Extended(self.name, self.size, f"has an extended header of more than {MOST_EXTENDED:,} bytes")
        if kind == b"L":
            return _Extended(_text(content), self.size, self.fault)
        records = _pax_records(content)
        if any(key.startswith(b"GNU.sparse") for key in records):
            return _Extended(self.name, self.size, "is a sparse file, which is not read")
        name, size = records.get(b"path", b""), records.get(b"size", b"")
        if size and not (size.isdigit() and len(size) <= 18):
            return _Extended(self.name, self.size, "has a damaged extended header")
        return _Extended(_text(name) or self.name, int(size) if size else self.size, self.fault)


def _pax_records(content: bytes) -> dict[bytes, bytes]:
    """Keys and values of a pax header, of which each record is ``LENGTH KEY=VALUE\\n``; up to the first damaged one."""
    records, at = {}, 0
    while match := _PAX_RECORD.match(content, at):
        end = at + int(match[1])
        if end <= match.end() or content[end - 1 : end] != b"\n":
            break
        records[match[2]] = content[match.end() : end - 1]
        at = end
    return records


def _parsed(block: bytes, at: int) -> tuple[str, int, bytes]:
    """(name, size, type) of a header. Raises `DamagedArchive`."""
    try:
        stated = _number(block[148:156])
        if stated != sum(block) - sum(block[148:156]) + 8 * 32:  # the sum of its bytes, itself as spaces
            raise ValueError
        size = _number(block[124:136])
    except ValueError as error:
        if at == 0:
            raise DamagedArchive("is no tar archive, or a compressed one: unpack it") from error
        raise DamagedArchive(f"has a damaged header at byte {at:,}: what is behind it cannot be read; copy it again"
                             ) from error
    if block[156:157] == b"S":
        raise DamagedArchive("holds a sparse file, which is not read: pack it again without --sparse")
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name, size, block[156:157]


def _number(field: bytes) -> int:
    """A number of a header, in octal digits, or binary behind a first byte of 128. Raises `ValueError`."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.split(b"\0", 1)[0].strip()
    if text and not text.isdigit():  # int() would take signs and underscores
        raise ValueError
    return int(text or b"0", 8)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _plain(name: str) -> str:
    while name.startswith("./"):
        name = name[2:]
    return name


def _fault_of_name(name: str) -> str:
    if not name or name.startswith("/"):
        return "has no name" if not name else "has an absolute name"
    return "has a name that leads out of its folder" if ".." in name.split("/") else ""


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def shown_name(member: TarMember) -> str:
    """The member's name for messages, safe to print."""
    return printable(shortened(member.name))
