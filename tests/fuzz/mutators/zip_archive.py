"""Changes to zip archives that keep checksums and directories right, or wrong in one place only."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from random import Random

from . import raw

Members = list[tuple[str, bytes]]
CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"
BOMB = 200_000_000  # bytes that a deflated member of this module unpacks to


def members(data: bytes) -> Members:
    """Names and contents, in order."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def written(found: Members, deflated: set[str] | frozenset[str] = frozenset()) -> bytes:
    """An archive of members, stored but for those ``deflated``. Names may come twice."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in found:
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED if name in deflated else zipfile.ZIP_STORED
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a name that comes twice
                archive.writestr(entry, content)
    return file.getvalue()


def mutate(rng: Random, data: bytes, content: Callable[[Random, str, bytes], bytes]) -> bytes:
    """Change members by ``content`` (by name), the list of members, how they are packed, or their entries' fields."""
    found = members(data)
    choice = rng.random()
    deflated: set[str] = set()
    place = rng.randrange(len(found))
    name, old = found[place]
    if choice < 0.5:
        for _ in range(rng.choice((1, 1, 2))):
            place = rng.randrange(len(found))
            found[place] = (found[place][0], content(rng, *found[place]))
    elif choice < 0.58:
        del found[place]
    elif choice < 0.64:
        found.insert(rng.randrange(len(found) + 1), (name, raw.mutate(rng, old)))
    elif choice < 0.7:
        found[place] = (rng.choice(("../outside/x", "/x", "", "a" * 3000, f"{name}\x1b[2J", name.upper())), old)
    elif choice < 0.76:
        other = rng.randrange(len(found))
        found[place], found[other] = (name, found[other][1]), (found[other][0], old)
    elif choice < 0.85:
        deflated = {name} if rng.random() < 0.7 else {each for each, _ in found}
        if rng.random() < 0.3:
            found[place] = (name, old + b"\0" * BOMB)
    else:
        return fields(rng, written(found))
    if rng.random() < 0.1:
        return fields(rng, written(found, deflated))
    return written(found, deflated)


def fields(rng: Random, data: bytes) -> bytes:
    """Change a field of an entry in the directory or in front of a member: flags, packing, sum, sizes, lengths."""
    signature, layout = rng.choice(((CENTRAL, (8, 10, 16, 20, 24, 28, 30, 32, 38, 42)),
                                    (LOCAL, (6, 8, 14, 18, 22, 26, 28))))
    places, start = [], 0
    while (start := data.find(signature, start)) >= 0:
        places.append(start)
        start += 4
    if not places:
        return raw.mutate(rng, data)
    changed = bytearray(data)
    place = rng.choice(places) + rng.choice(layout)
    number = rng.choice((0, 1, 8, 9, 12, 14, 99, 65535, 2**31, 2**32 - 1, len(data)))
    width = 2 if rng.random() < 0.4 else 4
    struct.pack_into("<H" if width == 2 else "<I", changed, min(place, len(changed) - 4), number % (1 << 8 * width))
    return bytes(changed)


def bomb(name: str, begin: bytes, size: int) -> bytes:
    """An archive of one member: ``begin``, then zeros up to ``size`` bytes, deflated to a thousandth; its sum is right.

    A million bytes are deflated once, and their block is repeated.
    """
    piece = bytes(1 << 20)
    count = (size - len(begin)) // len(piece)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = packer.compress(begin) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
    packed = head + block * count + packer.flush(zlib.Z_FINISH)
    checksum = zlib.crc32(begin)
    for _ in range(count):
        checksum = zlib.crc32(piece, checksum)
    unpacked, encoded = len(begin) + count * len(piece), name.encode()
    about = struct.pack("<HHHHIIIHH", 0, 8, 0, 33, checksum, len(packed), unpacked, len(encoded), 0)
    local = LOCAL + struct.pack("<H", 20) + about + encoded
    central = CENTRAL + struct.pack("<HH", 20, 20) + about + struct.pack("<HHHII", 0, 0, 0, 0, 0) + encoded
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, len(central), len(local) + len(packed), 0)
    return local + packed + central + end


def joined(first: bytes, second: bytes) -> bytes:
    """One archive with the members of two, still packed as they were."""
    bodies, directories, count = b"", b"", 0
    for data in (first, second):
        end = data.rindex(b"PK\x05\x06")
        entries, length, start = struct.unpack_from("<HII", data, end + 10)
        directory = bytearray(data[start : start + length])
        place = 0
        for _ in range(entries):
            offset, = struct.unpack_from("<I", directory, place + 42)
            struct.pack_into("<I", directory, place + 42, offset + len(bodies))
            place += 46 + sum(struct.unpack_from("<HHH", directory, place + 28))
        bodies, directories, count = bodies + data[:start], directories + bytes(directory), count + entries
    return bodies + directories + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, len(directories),
                                              len(bodies), 0)
