"""Changes to media files by the parts of their containers: chunks of PNG, RIFF and ISO-BMFF, segments of JPEG, entries
of TIFF. Sums and lengths around a change are put right, so that it reaches the decoder behind."""

from __future__ import annotations

import struct
import zlib
from random import Random

from . import raw

Parts = list[tuple[bytes, bytes]]  # name and content

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_parts(data: bytes) -> Parts:
    """The chunks of a PNG."""
    parts, place = [], len(PNG_SIGNATURE)
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        parts.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    return parts


def png_written(parts: Parts) -> bytes:
    """A PNG of chunks, with their sums."""
    return PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in parts
    )


def jpeg_parts(data: bytes) -> Parts:
    """The segments of a JPEG; what follows the start of the scan is one part."""
    parts, place = [], 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        name, length = data[place : place + 2], int.from_bytes(data[place + 2 : place + 4], "big")
        if name == b"\xff\xda":
            break
        parts.append((name, data[place + 4 : place + 2 + length]))
        place += 2 + length
    return [*parts, (b"", data[place:])]


def jpeg_written(parts: Parts) -> bytes:
    """A JPEG of segments."""
    return b"\xff\xd8" + b"".join(
        name + struct.pack(">H", min(len(content) + 2, 65535)) + content if name else content for name, content in parts
    )


def riff_parts(data: bytes) -> Parts:
    """The chunks of a RIFF file (WebP, AVI); the first part is its form."""
    parts, place = [(b"form", data[8:12])], 12
    while place + 8 <= len(data):
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        parts.append((data[place : place + 4], data[place + 8 : place + 8 + length]))
        place += 8 + length + length % 2
    return parts


def riff_written(parts: Parts) -> bytes:
    """A RIFF file of a form and chunks."""
    if not parts:
        return b"RIFF"
    body = parts[0][1] + b"".join(
        name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2) for name, content in parts[1:]
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def boxes(data: bytes) -> Parts:
    """The boxes of an ISO-BMFF file (MP4, AVIF, JPEG 2000), the outer ones."""
    parts, place = [], 0
    while place + 8 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        if length < 8 or place + length > len(data):
            length = len(data) - place
        parts.append((data[place + 4 : place + 8], data[place + 8 : place + length]))
        place += length
    return parts


def boxes_written(parts: Parts) -> bytes:
    """A file of boxes."""
    return b"".join(struct.pack(">I", len(content) + 8) + name + content for name, content in parts)


NESTED = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"udta", b"dinf", b"edts", b"jp2h", b"iprp", b"ipco"}


def tiff(rng: Random, data: bytes) -> bytes:
    """Change entries of a TIFF's first directory: tag, type, count or value."""
    order = "<" if data[:2] == b"II" else ">"
    start = struct.unpack_from(f"{order}I", data, 4)[0]
    if start + 2 > len(data):
        return raw.mutate(rng, data)
    count = struct.unpack_from(f"{order}H", data, start)[0]
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = start + 2 + 12 * rng.randrange(max(count, 1))
        if place + 12 > len(changed):
            continue
        field = rng.choice((0, 2, 4, 8, 8))
        if field < 4:
            number = rng.choice((1, 2, 3, 4, 5, 12, 16, 256, 257, 258, 259, 262, 277, 278, 317, 320, 338, 339, 32773,
                                 34712))
            struct.pack_into(f"{order}H", changed, place + field, number)
        elif rng.random() < 0.5:  # a short number stands in the first two bytes of the four
            struct.pack_into(f"{order}H", changed, place + field,
                             rng.choice((0, 1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 65535)))
        else:
            struct.pack_into(f"{order}I", changed, place + field, rng.choice(raw.NUMBERS) % 2**32)
    return bytes(changed)


def mutate(rng: Random, data: bytes, other: bytes) -> bytes:
    """A change by the container's rules where it is one that is known here, else by bytes. ``other`` is another file,
    from which chunks may come."""
    if rng.random() < 0.3:
        return raw.mutate(rng, data, other)
    if data[:4] in (b"II*\0", b"MM\0*"):
        return tiff(rng, data)
    for begins, reading, writing in (
        (PNG_SIGNATURE, png_parts, png_written), (b"\xff\xd8", jpeg_parts, jpeg_written),
        (b"RIFF", riff_parts, riff_written),
    ):
        if data.startswith(begins):
            return writing(_changed(rng, reading(data), reading(other) if other.startswith(begins) else []))
    if data[4:8] in (b"ftyp", b"jP  "):
        return _changed_boxes(rng, data)
    return raw.mutate(rng, data, other)


def _changed_boxes(rng: Random, data: bytes) -> bytes:
    parts = boxes(data)
    if not parts:
        return raw.mutate(rng, data)
    place = rng.randrange(len(parts))
    nested = [index for index, (name, _) in enumerate(parts) if name in NESTED]
    if nested and rng.random() < 0.8:
        place = rng.choice(nested)
        name, content = parts[place]
        parts[place] = (name, _changed_boxes(rng, content))
        return boxes_written(parts)
    return boxes_written(_changed(rng, parts, []))


def _changed(rng: Random, parts: Parts, others: Parts) -> Parts:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not parts:
            break
        place, change = rng.randrange(len(parts)), rng.randrange(7)
        name, content = parts[place]
        if change < 2:
            parts[place] = (name, raw.mutate(rng, content))
        elif change == 2:
            parts[place] = (name, raw.number(rng, content))
        elif change == 3:
            del parts[place]
        elif change == 4:
            parts.insert(rng.randrange(len(parts) + 1), (name, content))
        elif change == 5:
            parts.append(parts.pop(place))
        elif others:
            parts.insert(place, rng.choice(others))
    return parts
