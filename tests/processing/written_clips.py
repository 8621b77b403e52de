"""Clips that tests write, with PyAV: in any container and codec, with any times, turned or transparent."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 64, 48


def level(index: int) -> int:
    """The red of frame ``index``."""
    return 10 + 15 * index


def frame(index: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """uint8 [H, W, 3]: (level(index), 60, 200), and a green quarter at the upper left, so that no turn looks alike."""
    pixels = np.full((height, width, 3), (level(index), 60, 200), np.uint8)
    pixels[: height // 2, : width // 4] = (level(index), 220, 40)
    return pixels


def write_clip(
    path: Path, codec: str = "libx264", layout: str = "yuv420p", *, container: str | None = None,
    frames: Sequence[np.ndarray] | None = None, times: Sequence[float] | None = None, rate: int = 10,
    options: dict[str, str] | None = None,
) -> Path:
    """Write frames, uint8 [H, W, 3] or [H, W, 4]: 16 of `frame` without any. ``times``: seconds; without, a constant
    ``rate``."""
    frames = [frame(index) for index in range(16)] if frames is None else frames
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = layout
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, pixels in enumerate(frames):
            order = "rgba" if pixels.shape[2] == 4 else "rgb24"
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), order)
            if times is not None:
                picture.pts, picture.time_base = round(times[index] * 1000), Fraction(1, 1000)
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    return path


def set_matrix(path: Path, matrix: Sequence[int]) -> Path:
    """Write a, b, c, d of the display matrix into an MP4's first track header."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (number * 65536 for number in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def reds(pictures: Sequence) -> list[int]:
    """The mean red of each picture."""
    return [round(float(np.asarray(picture)[..., 0].mean())) for picture in pictures]
