"""Animated pictures (GIF, APNG, WebP, AVIF) as clips: Pillow reads them as it reads pictures, over white."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import PIL.Image

from flamingo_rt.errors import DataError
from flamingo_rt.processing.decoded_clip import ClipFrame, check_frame_size
from flamingo_rt.processing.input_files import open_file
from flamingo_rt.processing.pictures import NO_WARNINGS, open_picture

FORMATS = ("GIF", "PNG", "WEBP", "AVIF")
# Their decoders hold the whole canvas several times.
FEWER_PIXELS = {"WEBP": 25_000_000, "AVIF": 25_000_000}
SHORTEST_GIF_DELAY, GIF_DELAY = 20, 100  # ms: browsers and FFmpeg show frames of shorter delays for this long


def is_animation(beginning: bytes) -> bool:
    """Whether a file with this beginning has a picture format that can be animated."""
    return (
        beginning.startswith((b"GIF87a", b"GIF89a", b"\x89PNG\r\n\x1a\n"))
        or (beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP")
        or beginning[4:12] in (b"ftypavif", b"ftypavis")
    )


class Animation:
    """An opened animation. A still picture is an animation of one frame."""

    def __init__(self, image: PIL.Image.Image, label: str) -> None:
        self._image, self._label = image, label
        self._first = 1 if getattr(image, "default_image", False) else 0  # 0: APNG's picture for simple viewers
        # Not known: counting would decode the whole file.
        self.stated_frames = 0

    def frames(self) -> Iterator[ClipFrame]:
        """Decode to the end or to the first undecodable data."""
        elapsed, index, image = 0.0, self._first, self._image
        while True:
            try:
                image.seek(index)
                image.load()
            except EOFError:
                return
            except Exception as error:  # decoders raise anything at all for damaged bytes
                if index == self._first:
                    reason = " ".join(str(error).split()) or type(error).__name__
                    raise DataError(f"{self._label} cannot be decoded: {reason}; copy it again") from error
                return
            start, elapsed = elapsed, elapsed + self._seconds()
            yield ClipFrame(image.width, image.height, start, self._picture, end=elapsed)
            index += 1

    def _seconds(self) -> float:
        milliseconds = self._image.info.get("duration", 0)
        if not isinstance(milliseconds, (int, float)) or not 0 <= milliseconds < math.inf:
            return 0.0
        if self._image.format == "GIF" and milliseconds < SHORTEST_GIF_DELAY:
            milliseconds = GIF_DELAY
        return milliseconds / 1000

    def _picture(self) -> PIL.Image.Image:
        return open_picture(self._image)


@contextmanager
def open_clip(path: str, label: str) -> Iterator[Animation]:
    """Open an animated picture. Raises `DataError` when Pillow cannot read it."""
    with NO_WARNINGS, open_file(path) as file:
        PIL.Image.init()
        try:
            image = PIL.Image.open(file, formats=[name for name in FORMATS if name in PIL.Image.OPEN])
        except Exception as error:  # decoders raise anything at all for damaged bytes
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{label} cannot be decoded: {reason}; copy it again") from error
        with image:
            check_frame_size(image.width, image.height, label, FEWER_PIXELS.get(image.format or ""))
            yield Animation(image, label)
