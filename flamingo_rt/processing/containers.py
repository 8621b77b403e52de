"""The containers that clips are read from, and the declarations in their headers that OpenCV does not report."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

# FFmpeg's names of containers whose frames lie in the file itself. Left out: formats that name other files or hosts
# (hls, concat, dash, imf, sdp, image2, vobsub, ...), formats without video, and animations, which Pillow reads.
FORMATS = (
    "mov", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "nut", "mxf", "ivf", "dv", "rm",
    "mpegvideo", "m4v", "h264", "hevc", "mjpeg", "yuv4mpegpipe",
)
PROTOCOLS = ("file",)

MAX_ELEMENTS = 100_000  # boxes or elements looked at before a header counts as undeclared


@dataclass(frozen=True)
class Declared:
    """Declarations of a container's header. ``mirrored``: frames are shown flipped. ``transparent``: a second stream of
    the file holds their transparency."""

    mirrored: bool = False
    transparent: bool = False


def declared(file: BinaryIO) -> Declared:
    """Read the declarations in the header of an MP4, QuickTime, Matroska or WebM file. Other containers, and damaged
    ones, declare nothing."""
    beginning = file.read(12)
    try:
        if beginning[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
            return _declared_by_boxes(file)
        if beginning[:4] == b"\x1a\x45\xdf\xa3":
            return _declared_by_elements(file)
    except (struct.error, ValueError, OverflowError, OSError):
        pass
    return Declared()


# --- MP4 and QuickTime: ISO/IEC 14496-12, 4.2 and 8.3.2


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, start of its content, end) of each box between two offsets."""
    for _ in range(MAX_ELEMENTS):
        if start + 8 > end:
            return
        file.seek(start)
        size, kind = struct.unpack(">I4s", file.read(8))
        content = start + 8
        if size == 1:
            size, content = struct.unpack(">Q", file.read(8))[0], start + 16
        stop = end if size == 0 else min(start + size, end)
        if stop < content:
            return
        yield kind, content, stop
        start = stop


def _declared_by_boxes(file: BinaryIO) -> Declared:
    end = file.seek(0, os.SEEK_END)
    movies = [(start, stop) for kind, start, stop in _boxes(file, 0, end) if kind == b"moov"]
    for movie in movies:
        movie_mirrored = False
        for kind, start, stop in _boxes(file, *movie):
            if kind == b"mvhd":
                movie_mirrored = _mirrors(_matrix(file, start, 36))
            if kind == b"trak":
                mirrored = is_video = False
                for inner, at, until in _boxes(file, start, stop):
                    if inner == b"tkhd":
                        mirrored = _mirrors(_matrix(file, at, 40))
                    if inner == b"mdia":
                        is_video = any(
                            leaf == b"hdlr" and _read(file, where + 8, 4) == b"vide"
                            for leaf, where, _ in _boxes(file, at, until)
                        )
                if is_video:  # FFmpeg and OpenCV take the first
                    return Declared(mirrored=mirrored != movie_mirrored)
    return Declared()


def _matrix(file: BinaryIO, start: int, offset: int) -> tuple[int, ...]:
    """The 9 numbers of a header box; ``offset`` is where they are in version 0, without the 12 bytes of version 1."""
    version = _read(file, start, 1)[0]
    return struct.unpack(">9i", _read(file, start + offset + (12 if version == 1 else 0), 36))


def _mirrors(matrix: tuple[int, ...]) -> bool:
    across, down = matrix[0:2], matrix[3:5]
    return across[0] * down[1] - across[1] * down[0] < 0


# --- Matroska and WebM: RFC 8794 and RFC 9559

SEGMENT, TRACKS, CLUSTER, TRACK, TRACK_TYPE = 0x18538067, 0x1654AE6B, 0x1F43B675, 0xAE, 0x83
VIDEO, ALPHA_MODE, PROJECTION, POSE_YAW = 0xE0, 0x53C0, 0x7670, 0x7673


def _elements(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(id, start of its content, end) of each element between two offsets."""
    for _ in range(MAX_ELEMENTS):
        if start + 2 > end:
            return
        name, start, _ = _variable_integer(file, start, keep_marker=True)
        size, start, length = _variable_integer(file, start, keep_marker=False)
        unknown = size == (1 << (7 * length)) - 1
        stop = end if unknown else min(start + size, end)
        yield name, start, stop
        start = stop


def _variable_integer(file: BinaryIO, at: int, keep_marker: bool) -> tuple[int, int, int]:
    """Read an integer: (value, offset after it, its length in bytes)."""
    first = _read(file, at, 1)[0]
    length = 9 - first.bit_length()
    if length > 8:
        raise ValueError("no variable-size integer")
    value = int.from_bytes(_read(file, at, length), "big")
    return value if keep_marker else value & ((1 << (7 * length)) - 1), at + length, length


def _declared_by_elements(file: BinaryIO) -> Declared:
    end = file.seek(0, os.SEEK_END)
    for segment, start, stop in _elements(file, 0, end):
        if segment != SEGMENT:
            continue
        for name, at, until in _elements(file, start, stop):
            if name == CLUSTER:  # frames: their description came before them
                break
            if name == TRACKS:
                for track, within, last in _elements(file, at, until):
                    leaves = _leaves(file, (within, last)) if track == TRACK else {}
                    if _number(file, leaves.get(TRACK_TYPE)) == 1:  # FFmpeg and OpenCV take the first video
                        return _declared_by_video(file, leaves.get(VIDEO))
    return Declared()


def _leaves(file: BinaryIO, extent: tuple[int, int]) -> dict[int, tuple[int, int]]:
    return {leaf: (where, behind) for leaf, where, behind in _elements(file, *extent)}


def _declared_by_video(file: BinaryIO, extent: tuple[int, int] | None) -> Declared:
    if extent is None:
        return Declared()
    leaves, yaw = _leaves(file, extent), 0.0
    if PROJECTION in leaves:
        where, behind = _leaves(file, leaves[PROJECTION]).get(POSE_YAW, (0, 0))
        if behind > where:
            yaw = struct.unpack(">f" if behind - where == 4 else ">d", _read(file, where, behind - where))[0]
    # FFmpeg takes a picture that is turned half around its upright axis as one seen from behind.
    return Declared(mirrored=math.isclose(abs(yaw), 180), transparent=_number(file, leaves.get(ALPHA_MODE)) == 1)


def _number(file: BinaryIO, extent: tuple[int, int] | None) -> int:
    return int.from_bytes(_read(file, extent[0], min(extent[1] - extent[0], 8)), "big") if extent else 0


def _read(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    content = file.read(count)
    if len(content) < count:
        raise ValueError("cut short")
    return content
