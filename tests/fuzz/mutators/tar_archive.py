"""Changes to tar archives: fields of a member's header, with its sum set right again, and members that go, come twice
or get an extended header."""

from __future__ import annotations

from random import Random

from . import raw

BLOCK = 512
# Where fields are in a header, and how long they are.
NAME, SIZE, TYPE, LINK, MAGIC, PREFIX = (0, 100), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155)
NAMES = (
    b"", b".", b"..", b"/", b"../outside/secret.png", b"/etc/passwd", b"a/../../x.png", b"\x1b]52;c;aGFjaw==\x07.png",
    b"\xe2\x80\xae.png", b"\xff\xfe.png", b".png", b"._0.png", b"n" * 100, b"0", b"0.txt", b"0.png", b"0.json",
    b"9.avi",
)
SIZES = (b"0" * 11, b"7" * 11, b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-1", b"+1", b"1_0", b"9", b"", b"00000000777",
         b" 17 ")
TYPES = tuple(bytes([kind]) for kind in b"01234567\0LKxgSVMA\xff")
RECORDS = (
    b"path=../outside/secret.png", b"path=" + b"n" * 3000 + b".png", b"size=0", b"size=99999999999999999999",
    b"size=-1", b"GNU.sparse.major=1", b"linkpath=/etc/passwd", b"=", b"path=", b"hdrcharset=BINARY", b"mtime=nan",
)

Part = tuple[bytes, bytes]  # a header, and its content with what fills its last block


def parts(data: bytes) -> list[Part]:
    """The members of a valid archive."""
    found, at = [], 0
    while at + BLOCK <= len(data) and data[at : at + BLOCK].strip(b"\0"):
        size = int(data[at + 124 : at + 135], 8)
        end = at + BLOCK + -(-size // BLOCK) * BLOCK
        found.append((data[at : at + BLOCK], data[at + BLOCK : end]))
        at = end
    return found


def written(found: list[Part]) -> bytes:
    """An archive of these members."""
    return b"".join(header + content for header, content in found) + bytes(2 * BLOCK)


def with_field(header: bytes, field: tuple[int, int], value: bytes) -> bytes:
    """A header with one field replaced, and its sum set right."""
    start, length = field
    changed = bytearray(header)
    changed[start : start + length] = value[:length].ljust(length, b"\0")
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


def extended(kind: bytes, content: bytes) -> Part:
    """An extended header for the member behind it."""
    header = with_field(bytes(BLOCK), SIZE, b"%011o" % len(content))
    return with_field(header, TYPE, kind), content + bytes(-len(content) % BLOCK)


def mutate(rng: Random, data: bytes) -> bytes:
    """One to three changes; sometimes of bytes anywhere."""
    if rng.random() < 0.2:
        return raw.mutate(rng, data)
    found = parts(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.randrange(len(found))
        header, content = found[place]
        change = rng.randrange(8)
        if change < 4:
            field, values = rng.choice(((NAME, NAMES), (SIZE, SIZES), (TYPE, TYPES), (PREFIX, NAMES), (LINK, NAMES),
                                        (MAGIC, (b"ustar  ", b"ustar\x0000", b"", b"GNUtar"))))
            found[place] = with_field(header, field, rng.choice(values)), content
        elif change == 4:
            found[place] = header, raw.mutate(rng, content)[: len(content)].ljust(len(content), b"\0")
        elif change == 5:
            found.insert(rng.randrange(len(found) + 1), found[place])
        elif change == 6 and len(found) > 1:
            del found[place]
        else:
            record = rng.choice(RECORDS)
            length = rng.choice((len(record) + 4, 0, 3, 10**6))
            found.insert(place, rng.choice((extended(b"x", b"%d %s\n" % (length, record)),
                                            extended(b"L", record.partition(b"=")[2]), extended(b"g", record))))
    return written(found)
