"""Tiny writers of picture files, from raw samples: no decoder is needed to know what such a file shows."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

# Adam7: first row, first column, step of rows and of columns of each pass.
PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def packed(samples: np.ndarray, bits: int, order: str = ">", align: int = 1) -> list[bytes]:
    """Rows of unsigned samples [H, ...], each padded to whole bytes, or to ``align`` bytes; high bits first."""
    rows = samples.reshape(len(samples), -1)
    if bits in (8, 16, 32):
        lines = [row.astype(f"{order}u{bits // 8}").tobytes() for row in rows]
    else:
        digits = (rows[..., None].astype(np.int64) >> np.arange(bits - 1, -1, -1)) & 1
        lines = [np.packbits(line.astype(np.uint8)).tobytes() for line in digits.reshape(len(rows), -1)]
    return [line + bytes(-len(line) % align) for line in lines]


def png(samples: np.ndarray, depth: int, colour: int, trns: bytes = b"", plte: bytes = b"", interlaced: bool = False
        ) -> bytes:
    """A PNG of samples [H, W] or [H, W, C] of ``depth`` bits."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = samples.shape[:2]
    passes = [samples[top::down, left::across] for top, left, down, across in PASSES] if interlaced else [samples]
    lines = b"".join(b"\0" + line for part in passes if part.size for line in packed(part, depth))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + (chunk(b"PLTE", plte) if plte else b"")
            + (chunk(b"tRNS", trns) if trns else b"") + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))


def tiff(data: Sequence[bytes], size: tuple[int, int], bits: Sequence[int], photometric: int, order: str = "<",
         deflate: bool = False, tags: dict[int, Sequence[int]] | None = None) -> bytes:
    """A TIFF with one strip for each of ``data``, of ``size`` (width, height) and one sample for each of ``bits``."""
    strips = [zlib.compress(strip) if deflate else strip for strip in data]
    fields = {256: [size[0]], 257: [size[1]], 258: list(bits), 259: [8 if deflate else 1], 262: [photometric],
              273: [0] * len(strips), 277: [len(bits)], 278: [size[1]], 279: [len(strip) for strip in strips],
              **(tags or {})}
    wide = {273, 279}  # LONG; all others SHORT
    directory_at = 8
    values_at = directory_at + 2 + 12 * len(fields) + 4
    lengths = {tag: len(values) * (4 if tag in wide else 2) for tag, values in fields.items()}
    strips_at = values_at + sum(length for length in lengths.values() if length > 4)
    fields[273] = [strips_at + sum(map(len, strips[:index])) for index in range(len(strips))]
    entries, beyond = b"", b""
    for tag in sorted(fields):
        values, kind = fields[tag], "I" if tag in wide else "H"
        content = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(content) > 4:
            content, beyond = struct.pack(order + "I", values_at + len(beyond)), beyond + content
        entries += struct.pack(order + "HHI", tag, 4 if kind == "I" else 3, len(values)) + content.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", directory_at)
    return head + struct.pack(order + "H", len(fields)) + entries + bytes(4) + beyond + b"".join(strips)


def bmp(lines: Sequence[bytes], size: tuple[int, int], bits: int, palette: bytes = b"", compression: int = 0,
        masks: Sequence[int] = (), colours: int = 0, top_down: bool = False, core: bool = False) -> bytes:
    """A BMP of rows, the first one the top one. ``masks``: red, green, blue and, in a V4 header, alpha. ``core``: the
    header of OS/2, whose palette has 3 bytes a colour."""
    width, height = size
    data = b"".join(lines if top_down else lines[::-1]) if compression not in (1, 2) else b"".join(lines)
    if core:
        header = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        whole = 108 if len(masks) == 4 else 40
        header = struct.pack("<IiiHHIIiiII", whole, width, -height if top_down else height, 1, bits, compression,
                             len(data), 2835, 2835, colours, 0) + struct.pack(f"<{len(masks)}I", *masks)
        header = header.ljust(whole, b"\0")
    start = 14 + len(header) + len(palette)
    return struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start) + header + palette + data


def gif(indices: np.ndarray, screen: tuple[int, int], place: tuple[int, int] = (0, 0), table: bytes = b"",
        local: bytes = b"", background: int = 0, transparent: int | None = None, interlaced: bool = False) -> bytes:
    """A GIF of one frame of indices [H, W] below 128, at ``place`` (left, top) of the screen (width, height). Tables
    have 128 colours or none."""
    height, width = indices.shape
    if interlaced:
        indices = np.concatenate([indices[0::8], indices[4::8], indices[2::4], indices[1::2]])
    codes = [128]  # codes of 8 bits: the table is cleared before it would need 9
    for index in indices.ravel():
        codes += [int(index)] + ([128] if len(codes) % 64 == 0 else [])
    codes.append(129)
    stream = bytes(codes)
    blocks = b"".join(bytes([len(stream[at : at + 255])]) + stream[at : at + 255] for at in range(0, len(stream), 255))
    control = b"" if transparent is None else b"\x21\xf9\x04\x01\0\0" + bytes([transparent, 0])
    return (b"GIF89a" + struct.pack("<HHBBB", *screen, 0xF6 if table else 0x70, background, 0) + table + control
            + b"\x2c" + struct.pack("<HHHHB", *place, width, height, 0x86 * bool(local) | 0x40 * interlaced)
            + local + b"\x07" + blocks + b"\0;")
