"""Pictures that were read in wrong colours, and files of a few kilobytes that took gigabytes."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import PIL.Image

from ..kind import Case, Seeds
from ..mutators.containers import png_written
from ..sandbox import Sandbox
from . import FILES

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
GREY, GREY_ALPHA, COLOUR, PALETTE, COLOUR_ALPHA = 0, 4, 2, 3, 6  # PNG's colour types
SIDE = 10_000  # a square of the largest number of pixels that is read


def _case(name: str, content: bytes, pixels: list[tuple[int, int, int]] | None = None,
          refused: bool | None = False) -> Case:
    """A case; ``pixels`` is the expected first row, to within 1."""

    def write(sandbox: Sandbox, seeds: Seeds) -> None:
        (sandbox.input / "picture").write_bytes(content)

    def check(picture: PIL.Image.Image) -> bool:
        found = np.asarray(picture)[0, : len(pixels)].astype(int)
        return bool(np.abs(found - np.array(pixels)).max() <= 1)

    return Case(name, write, refused, check if pixels is not None else None)


def _png(colour: int, depth: int, row: bytes, width: int, *chunks: tuple[bytes, bytes], height: int = 1) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return png_written([
        (b"IHDR", header), *chunks, (b"IDAT", zlib.compress((b"\0" + row) * height)), (b"IEND", b""),
    ])


def _tiff(values: np.ndarray, photometric: int, sample_format: int = 1) -> bytes:
    """A plain TIFF of one strip [H, W], little-endian."""
    height, width = values.shape
    entries = [
        (256, 3, width), (257, 3, height), (258, 3, values.itemsize * 8), (259, 3, 1), (262, 3, photometric),
        (273, 4, 8),
        (277, 3, 1), (278, 3, height), (279, 4, values.nbytes), (339, 3, sample_format),
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries
    ) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + values.nbytes) + values.tobytes() + directory


def _flat_png(colour: int, depth: int, samples: int) -> bytes:
    """A hundred million pixels, all 0, in a few hundred kilobytes; made row by row."""
    row = b"\0" * (1 + SIDE * samples * depth // 8)
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(row) for _ in range(SIDE)) + packer.flush()
    return png_written([(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, depth, colour, 0, 0, 0)), (b"IDAT", data),
                        (b"IEND", b"")])


def _large(name: str, colour: int, depth: int, samples: int) -> Case:
    return Case(name, lambda sandbox, seeds: (sandbox.input / "picture").write_bytes(_flat_png(colour, depth,
                                                                                               samples)), None)


def _stored(name: str) -> Case:
    return Case(f"stored {name}", lambda sandbox,
                seeds: (sandbox.input / "picture").write_bytes((FILES / name).read_bytes()), None)


_RAMP = np.array([[0, 65535, 32896]], np.uint16)
_FLOATS = np.array([0.0, 1.0, 128 / 255], "<f4")
CASES = (
    _case("TIFF of 16 bits, white is 0", _tiff(_RAMP, 0), [WHITE, BLACK, (127, 127, 127)]),
    _case("TIFF of 16 bits, black is 0", _tiff(_RAMP, 1), [BLACK, WHITE, (128, 128, 128)]),
    _case("float map from 0 to 1", b"Pf\n3 1\n-1.0\n" + _FLOATS.tobytes(), [BLACK, WHITE, (128, 128, 128)]),
    _case("transparent colour of 16 bits, another with its low bytes",
          _png(COLOUR, 16, struct.pack(">9H", 0, 0, 0, 0x100, 0x100, 0x100, 0xFFFF, 0, 0), 3,
               (b"tRNS", struct.pack(">3H", 0x100, 0x100, 0x100))), [BLACK, WHITE, (255, 0, 0)]),
    _case("transparent grey of 2 bits", _png(GREY, 2, bytes([0b00_01_10_11]), 4, (b"tRNS", struct.pack(">H", 1))),
          [BLACK, WHITE, (170, 170, 170), WHITE]),
    _case("transparent grey of 4 bits", _png(GREY, 4, bytes([0x0A, 0x70]), 3, (b"tRNS", struct.pack(">H", 10))),
          [BLACK, WHITE, (119, 119, 119)]),
    _large("greys of 16 bits, 100 megapixels", GREY, 16, 1),
    _large("colours of 16 bits, 100 megapixels", COLOUR, 16, 3),
    _large("greys with alpha, 100 megapixels", GREY_ALPHA, 8, 2),
    _stored("large.jp2"), _stored("large.webp"),
    _case("a header of 2^31 by 2^31 pixels", _png(GREY, 8, b"\0", 2**31 - 1)[:16] + struct.pack(">II", 2**31 - 1,
                                                                                                2**31 - 1)
          + _png(GREY, 8, b"\0", 1)[24:], refused=True),
    _case("an empty file", b"", refused=True),
    _case("a script named as a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ran) (w) file\n",
          refused=True),
    _case("a file that begins with what a terminal obeys", b"\x1b]52;c;aGFjaw==\x07" + bytes(50), refused=True),
)
