"""What every reader of clips gives: frames in the order in which they are shown, with their times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import PIL.Image

from flamingo_rt.errors import DataError

# Frames of 8K video have 33 million. Transparent ones take 24 bytes a pixel at the peak, with the decoder's own.
MAX_FRAME_PIXELS = 40_000_000


@dataclass(frozen=True)
class ClipFrame:
    """One decoded frame. ``picture()`` converts it, upright RGB over white, until the next one is asked for.

    start, end: seconds on the clip's clock; NaN where it has none. Only animations say when a frame ends.
    """

    width: int
    height: int
    start: float
    picture: Callable[[], PIL.Image.Image]
    end: float | None = None


class Clip(Protocol):
    """An opened clip. ``stated_frames`` is the count in its header, which may be anything; 0 where it says none."""

    stated_frames: int

    def frames(self) -> Iterator[ClipFrame]:
        """Decode from the start to the end, or to the first data that cannot be decoded."""
        ...


def check_frame_size(width: int, height: int, label: str) -> None:
    """Raise `DataError` for frames of more than `MAX_FRAME_PIXELS` pixels."""
    if width * height > MAX_FRAME_PIXELS:
        raise DataError(f"{label} has frames of {width:,} x {height:,} pixels, more than the "
                        f"{MAX_FRAME_PIXELS:,} that are read; make it smaller first")


def not_a_clip(label: str) -> DataError:
    """The error for a file that is no clip, or none in a container that is read."""
    return DataError(f"{label} is not a video this can read, or it is damaged or cut short; convert it, for example to "
                     "H.264 in MP4")


def not_a_quarter_turn(label: str, degrees: float) -> DataError:
    """The error for a clip that is to be shown at another angle."""
    return DataError(f"{label} is to be shown turned by {degrees:.0f} degrees, which is no multiple of 90: turn its "
                     "pictures themselves, for example with ffmpeg's rotate filter")
