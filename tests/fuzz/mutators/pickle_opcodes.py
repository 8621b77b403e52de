"""Changes to pickles by their opcodes: other arguments, opcodes that go or come twice, memo places, code to run."""

from __future__ import annotations

import pickle
import pickletools
import struct
from random import Random

from . import raw

# Opcodes with arguments of a telling size; a huge place in the memo makes a reader reserve as much.
INSERTED = (
    b"r" + struct.pack("<I", 400_000_000), b"r" + struct.pack("<I", 2**31 - 1), b"h\xff",
    b"j" + struct.pack("<I", 10**8),
    b"0", b"2", b"(", b"1", b"}", b"]", b")", b"N", b"R", b"b", b"u", b"s", b"a", b"e", b"t", b"\x85", b"\x86", b"\x87",
    b"Q", b"o", b"\x81", b"\x92", b"\x8f", b"\x90", b"\x94", b"J\xff\xff\xff\xff", b"K\x00", b"X\x03\x00\x00\x00a\x1b[",
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"cbuiltins\ngetattr\n", b"c__main__\nx\n", b"ctorch\nload\n",
    b"c\x1b[2J\nx\n",
    b"B" + struct.pack("<I", 2**31), b"\x8d" + struct.pack("<Q", 2**40), b"\x8b" + struct.pack("<I", 10), b"P1\n",
    b"\x95" + struct.pack("<Q", 2**60), b"L" + b"9" * 5000 + b"L\n", b"I" + b"9" * 5000 + b"\n", b"\x82\x01",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n", b".",
)


def pieces(data: bytes) -> list[bytes]:
    """A pickle cut into its opcodes, with what follows the last one as one more piece."""
    places = [place for _, _, place in pickletools.genops(data)]
    ends = [*places[1:], data.index(b".", places[-1]) + 1]
    return [data[begin:end] for begin, end in zip(places, ends, strict=True)] + [data[ends[-1] :]]


def mutate(rng: Random, data: bytes) -> bytes:
    """Make one to four changes."""
    try:
        found = pieces(data)
    except ValueError:
        return raw.mutate(rng, data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(1, len(found))
        choice = rng.random()
        if choice < 0.2:
            del found[place]
        elif choice < 0.35:
            found.insert(place, rng.choice(found[1:]) if len(found) > 1 else b".")
        elif choice < 0.65:
            found.insert(place, rng.choice(INSERTED))
        elif choice < 0.8:
            found[place] = found[place][:1] + raw.mutate(rng, found[place][1:] or b"\0")
        elif choice < 0.9:
            other = rng.randrange(1, len(found))
            found[place], found[other] = found[other], found[place]
        else:
            found[place] = rng.choice(INSERTED)
        if len(found) < 2:
            break
    return b"".join(found)


def running(command: str) -> bytes:
    """A pickle that runs a command of the shell when it is loaded."""
    return b"\x80\x02cos\nsystem\nX" + struct.pack("<I", len(command)) + command.encode() + b"\x85R."


def memo_bomb(place: int = 400_000_000) -> bytes:
    """A pickle of a few bytes for whose memo a reader reserves gigabytes."""
    return pickle.PROTO + b"\x02}r" + struct.pack("<I", place) + b"."
