"""Changes to bytes of any format."""

from __future__ import annotations

from random import Random

# Lengths, counts and offsets that programs compute wrongly with.
NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 1023, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1,
           2**40, 2**53, 2**63 - 1, 2**63, 2**64 - 1)


def flip(rng: Random, data: bytes) -> bytes:
    """Change single bits or bytes, up to 16."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if changed:
            place = rng.randrange(len(changed))
            changed[place] = changed[place] ^ 1 << rng.randrange(8) if rng.random() < 0.5 else rng.randrange(256)
    return bytes(changed)


def cut(rng: Random, data: bytes) -> bytes:
    """Cut off the end, or the beginning."""
    place = rng.randrange(len(data) + 1)
    return data[:place] if rng.random() < 0.8 else data[place:]


def remove(rng: Random, data: bytes) -> bytes:
    """Take out a piece."""
    begin, end = _piece(rng, data)
    return data[:begin] + data[end:]


def repeat(rng: Random, data: bytes) -> bytes:
    """Put a piece several times."""
    begin, end = _piece(rng, data)
    return data[:end] + data[begin:end] * rng.choice((1, 2, 50)) + data[end:]


def blank(rng: Random, data: bytes) -> bytes:
    """Overwrite a piece with one value."""
    begin, end = _piece(rng, data)
    return data[:begin] + bytes([rng.choice((0, 255, rng.randrange(256)))]) * (end - begin) + data[end:]


def number(rng: Random, data: bytes) -> bytes:
    """Write a telling number somewhere, 1 to 8 bytes wide."""
    width = rng.choice((1, 2, 4, 8))
    place = rng.randrange(max(len(data) - width, 0) + 1)
    written = (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, rng.choice(("little", "big")))
    return data[:place] + written + data[place + width :]


def splice(rng: Random, data: bytes, other: bytes) -> bytes:
    """Begin with one file and end with another."""
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def mutate(rng: Random, data: bytes, other: bytes = b"") -> bytes:
    """Make one to three of the changes above."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        change = rng.choice((flip, flip, flip, cut, remove, repeat, blank, number, number, splice))
        data = splice(rng, data, other or data) if change is splice else change(rng, data)
    return data


def _piece(rng: Random, data: bytes) -> tuple[int, int]:
    begin = rng.randrange(len(data) + 1)
    return begin, min(len(data), begin + rng.choice((1, 2, 4, 16, 64, 1000)))
