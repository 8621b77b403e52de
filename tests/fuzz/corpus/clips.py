"""Clips: lists that make FFmpeg open other files, names that it takes for protocols, frames that are kept whole."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np

from ..kind import Case, Seeds
from ..mutators.containers import png_written
from ..sandbox import Sandbox

NAME = "clip.name"


def write_clip(sandbox: Sandbox, name: str, content: bytes | None) -> None:
    """A clip, and the name that it is asked for by; with no content there is only the name."""
    (sandbox.input / NAME).write_bytes(os.fsencode(name))
    if content is not None:
        place = sandbox.input / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def _list(name: str, file: str, text: str, place: str = "../outside/secret.mp4") -> Case:
    """A text that names another file: ``{0}`` is ``place``, or where the listening socket is."""

    def write(sandbox: Sandbox, seeds: Seeds) -> None:
        target = {"url": sandbox.url, "absolute": str(sandbox.outside / "secret.mp4")}.get(place, place)
        write_clip(sandbox, file, text.format(target).encode())

    return Case(name, write)


def _named(name: str, asked: str, seed: str = "part4.mp4", refused: bool | None = False) -> Case:
    """A good clip under an odd name."""
    return Case(name, lambda sandbox, seeds: write_clip(sandbox, asked, seeds[seed]), refused)


def _asked(name: str, asked: str) -> Case:
    """A name that is no file's but that FFmpeg would open something for."""

    def write(sandbox: Sandbox, seeds: Seeds) -> None:
        for index in range(3):
            (sandbox.input / f"img-{index}.png").write_bytes(seeds["moving.png"])
        write_clip(sandbox, asked.format(sandbox.outside / "secret.mp4", sandbox.url), None)

    return Case(name, write)


def _apng(width: int, height: int, *rows: bytes) -> bytes:
    """A moving PNG of RGBA frames, each of one repeated row."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)),
              (b"acTL", struct.pack(">II", len(rows), 0))]
    number = 0
    for index, row in enumerate(rows):
        chunks.append((b"fcTL", struct.pack(">IIIIIHHBB", number, width, height, 0, 0, 1, 5, 0, 0)))
        number += 1
        packed = zlib.compress((b"\0" + row) * height)
        if index:
            chunks.append((b"fdAT", struct.pack(">I", number) + packed))
            number += 1
        else:
            chunks.append((b"IDAT", packed))
    return png_written([*chunks, (b"IEND", b"")])


def _transparent(sandbox: Sandbox, seeds: Seeds) -> None:
    hidden, seen = b"\xff\x00\x00\x00", b"\x00\x00\xff\xff"
    write_clip(sandbox, "clip.png", _apng(16, 16, *[hidden * 8 + seen * 8] * 4))


def _white_left(frames: list) -> bool:
    pixels = [np.asarray(frame).astype(int) for frame in frames]
    return all(pixel[:, :7].min() >= 250 and pixel[:, 9:, :2].max() <= 5 and pixel[:, 9:,
                                                                                   2].min() >= 250 for pixel in pixels)


def _wide_frames(sandbox: Sandbox, seeds: Seeds) -> None:
    side = 9000  # each frame 243 MB as RGB
    row = b"\x00\x00\xff\xff" * side
    write_clip(sandbox, "clip.png", _apng(side, side, *[row] * 4))


M3U = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{0}\n#EXT-X-ENDLIST\n"
CASES = (
    _list("playlist of another file", "clip.m3u8", M3U), _list("playlist of another file named mp4", "clip.mp4", M3U),
    _list("playlist of an absolute path", "clip.m3u8", M3U, "absolute"),
    _list("playlist of a server", "clip.m3u8", M3U, "url"), _list("playlist of a server named mp4", "clip.mp4", M3U,
                                                                  "url"),
    _list("ffconcat text", "clip.ffconcat", "ffconcat version 1.0\nfile '{0}'\n"),
    _list("ffconcat text named avi", "clip.avi", "ffconcat version 1.0\nfile '{0}'\n", "absolute"),
    _asked("series of pictures", "img-%d.png"), _asked("concat protocol", "concat:{0}|{0}"),
    _asked("subfile protocol", "subfile,,start,0,end,99,,:{0}"), _asked("request", "{1}"),
    _named("a file whose path begins like a request", "http:/127.0.0.1:9/clip.mp4"),
    _named("a colon in the name", "take:1.mp4"), _named("a percent in the name", "take-%d.mp4"),
    _named("a name that is not UTF-8", "\udcff.mp4"), _named("a name that begins with a dash", "-i.mp4"),
    Case("transparent where hidden colours are", _transparent, False, _white_left),
    Case("frames of 81 megapixels", _wide_frames, None),
)
