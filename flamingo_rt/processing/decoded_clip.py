"""Decoded clips, the common interface of all clip readers: frames in display order, with their times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import PIL.Image

from flamingo_rt.errors import DataError

# Frames of 8K video have 33 million. A transparent one is in memory several times, once for the decoder.
MAX_FRAME_PIXELS = 40_000_000


@dataclass(frozen=True)
class ClipFrame:
    """One decoded frame. ``picture()`` converts it to upright RGB over white; call it before taking the next frame.

    start, end: seconds on the clip's clock; NaN for a clip without one. Only animations know when a frame ends.
    """

    width: int
    height: int
    start: float
    picture: Callable[[], PIL.Image.Image]
    end: float | None = None


class Clip(Protocol):
    """An opened clip. ``stated_frames`` is the frame count in its header, which may be wrong; 0 if there is none."""

    stated_frames: int

    def frames(self) -> Iterator[ClipFrame]:
        """Decode from the start to the end, or to the first undecodable data."""
        ...


def check_frame_size(width: int, height: int, label: str, most: int | None = None) -> None:
    """Raise `DataError` for frames of more than ``most`` pixels, by default `MAX_FRAME_PIXELS`."""
    most = MAX_FRAME_PIXELS if most is None else most
    if width * height > most:
        raise DataError(f"{label} has frames of {width:,} x {height:,} pixels, more than the {most:,} that are read; "
                        "make it smaller first")


def not_a_clip(label: str) -> DataError:
    """The error for a file that is not a clip in a readable container."""
    return DataError(f"{label} is not a video this can read, or it is damaged or cut short; convert it, for example to "
                     "H.264 in MP4")


def not_a_quarter_turn(label: str, degrees: float) -> DataError:
    """The error for a clip rotated by ``degrees``, not a multiple of 90."""
    return DataError(f"{label} is displayed turned by {degrees:.0f} degrees, which is not a multiple of 90: rotate the "
                     "frames themselves, for example with ffmpeg's rotate filter")
