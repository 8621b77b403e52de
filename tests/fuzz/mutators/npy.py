"""Changes to numpy's ``.npy`` arrays: the header's text, its length and version, and the values."""

from __future__ import annotations

import ast
from random import Random

from . import raw

MAGIC = b"\x93NUMPY"
TYPES = ("<f4", ">f4", "<f8", "<i8", "|O", "|V9", "<U1000", "<M8[ns]", "|u1", "f", "<f999", [("a", "<i4")], "",
         "\x1b[2J")
SHAPES = ((), (0,), (-1,), (1,), (2**40, 2**20), (2**63,), (10**30,), (1,) * 70, (4, "a"), (2.5,), (10**9,), (None,))


def _header(text: bytes) -> dict | None:
    """The header as it was written, or None where a change before has left none."""
    try:
        header = ast.literal_eval(text.decode())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


def mutate(rng: Random, data: bytes) -> bytes:
    """Make one change to an array of version 1."""
    length = int.from_bytes(data[8:10], "little")
    text, values = data[10 : 10 + length], data[10 + length :]
    choice = rng.random()
    header = _header(text)
    if choice < 0.5 and header is not None:
        key = rng.choice(("descr", "shape", "fortran_order", "shape"))
        header[key] = rng.choice({"descr": TYPES, "shape": SHAPES, "fortran_order": (True, 1, "x", None)}[key])
        if rng.random() < 0.1:
            header[rng.choice(("extra", "__class__"))] = 1
        return packed(repr(header), values)
    if choice < 0.7:
        text = rng.choice((
            "{'descr': " + "(" * 500, "{" * 5000, "__import__('os').system('touch ran')", "'" * 3000, "{'descr': '\\x",
            "{'shape': (" + "9" * 6000 + ",), 'descr': '<f4', 'fortran_order': False}", "\x00" * 50,
            "1 + " * 1500 + "1", "{}",
            "{'descr': '<f4', 'shape': (4,), 'fortran_order': False", "-" * 4000 + "1",
        ))
        return packed(text, values)
    if choice < 0.8:
        return data[:6] + bytes([rng.randrange(5), rng.randrange(3)]) + data[8:]
    if choice < 0.9:
        return data[:8] + rng.choice((0, 1, 65535, length + 1, max(0, length - 1))).to_bytes(2, "little") + data[10:]
    return data[: 10 + length] + raw.mutate(rng, values)


def packed(header: str, values: bytes) -> bytes:
    """An array of version 1 with this text as its header."""
    text = header.encode("latin-1", "replace").ljust(64) + b"\n"
    return MAGIC + b"\x01\x00" + min(len(text), 65535).to_bytes(2, "little") + text + values
