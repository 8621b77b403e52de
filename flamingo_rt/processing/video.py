"""From a clip to the frames the model sees, evenly spaced. The one file of the runtime that uses OpenCV."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from flamingo_rt.errors import DataError, DependencyError
from flamingo_rt.processing import pictures
from flamingo_rt.processing.files import open_file
from flamingo_rt.processing.media import Video, is_array
from flamingo_rt.processing.pictures import open_picture
from flamingo_rt.processing.shared_context import SharedContext

if TYPE_CHECKING:
    import cv2

OPENCV_SILENT = 0  # LOG_LEVEL_SILENT
FFMPEG_LOG_LEVEL = "OPENCV_FFMPEG_LOGLEVEL"
FFMPEG_QUIET = "-8"  # AV_LOG_QUIET


def read_frames(video: Video) -> list[PIL.Image.Image]:
    """Read ``video.frames`` RGB pictures, evenly spaced over the clip, as `frame_indices` says.

    A file is decoded from its start to its end, because the frame count in its header may be missing or wrong;
    what follows undecodable data is not part of the clip. Raises `DataError` when the clip is missing, empty
    or cannot be decoded, and `DependencyError` when a file is to be read without OpenCV.
    """
    source = video.source
    if isinstance(source, (str, os.PathLike)):
        return _read_file(source, video)
    if isinstance(source, Sequence) and not isinstance(source, (bytes, bytearray)):
        return _read_sequence(source, video)
    if is_array(source) and len(getattr(source, "shape", ())) == 4:  # [T, H, W, 3]
        return _read_sequence(source, video)
    raise DataError(f"{video.label} is not a clip; give the path of a video file or a sequence of pictures")


def frame_indices(count: int, frames: int) -> list[int]:
    """Which of a clip's ``count`` frames to take: those at the centres of ``frames`` equal intervals.

    Ascending; with fewer frames than asked each is repeated, as evenly as can be.
    """
    return [(2 * interval + 1) * count // (2 * frames) for interval in range(frames)]


def _read_sequence(source: Sequence[Any], video: Video) -> list[PIL.Image.Image]:
    if not len(source):
        raise DataError(f"{video.label} has no frames; give one picture or more")
    indices = frame_indices(len(source), video.frames)
    opened: dict[int, PIL.Image.Image] = {}
    for index in sorted(set(indices)):
        try:
            opened[index] = open_picture(source[index], video.channels)
        except DataError as error:
            raise DataError(f"frame {index} of {video.label}: {error}") from error
    return [opened[index] for index in indices]


def _read_file(path: str | os.PathLike, video: Video) -> list[PIL.Image.Image]:
    open_file(path).close()
    _opencv()
    with _QUIET:
        stated = _stated_count(os.fsdecode(path), video.label)
        count, decoded = _decode(path, frame_indices(stated, video.frames) if stated > 0 else [], video.label)
        if count == 0:
            raise DataError(f"{video.label} has no frame that can be decoded; convert it, for example to H.264 in MP4")
        indices = frame_indices(count, video.frames)
        if count != stated:  # the header was wrong: now the count is known
            _, decoded = _decode(path, indices, video.label)
    if not decoded.keys() >= set(indices):
        raise DataError(f"{video.label} decodes differently from one reading to the next; convert it or copy it again")
    return [decoded[index] for index in indices]


def _stated_count(path: str, label: str) -> int:
    """The number of frames in the file's header, which may be anything."""
    cv2 = _opencv()
    with _capture(path, label) as capture:
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        width, height = (int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    if width * height > pictures.MAX_PIXELS:
        raise DataError(f"{label} has frames of {width:,} x {height:,} pixels, more than the "
                        f"{pictures.MAX_PIXELS:,} that are read; make it smaller first")
    return int(count) if 0 < count < 2**31 else 0


def _decode(
    path: str | os.PathLike, wanted: Collection[int], label: str
) -> tuple[int, dict[int, PIL.Image.Image]]:
    """Decode every frame; returns how many there are and those of the ``wanted`` indices that exist, RGB."""
    cv2 = _opencv()
    wanted = set(wanted)
    frames: dict[int, PIL.Image.Image] = {}
    count = 0
    try:
        with _capture(os.fsdecode(path), label) as capture:
            while capture.grab():
                if count in wanted:
                    read, frame = capture.retrieve()  # uint8 [H, W, 3], BGR
                    if not read or frame is None:
                        raise DataError(f"frame {count} of {label} cannot be decoded; convert or copy it again")
                    frames[count] = PIL.Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1]))
                count += 1
    except cv2.error as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{label} cannot be decoded at frame {count}: {reason}; convert it or copy it again") from error
    return count, frames


@contextmanager
def _capture(path: str, label: str) -> Iterator[cv2.VideoCapture]:
    """An opened capture. Only through FFmpeg: other backends take a name for a device or a numbered series."""
    cv2 = _opencv()
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise DataError(f"{label} is not a video this can read, or it is damaged or cut short; "
                            f"convert it, for example to H.264 in MP4")
        yield capture
    finally:
        capture.release()


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise DependencyError("reading video files needs OpenCV: pip install opencv-python-headless") from error
    return cv2


@contextmanager
def _silent_opencv() -> Iterator[None]:
    """Keep OpenCV and FFmpeg from writing to stderr.

    FFmpeg's level is taken from the environment at its first use in the process; an application that used OpenCV's
    videos before keeps the level it had.
    """
    cv2 = _opencv()
    logs = getattr(cv2.utils, "logging", cv2)  # OpenCV 5, 4
    level = logs.getLogLevel()
    given = os.environ.get(FFMPEG_LOG_LEVEL)
    logs.setLogLevel(OPENCV_SILENT)
    os.environ.setdefault(FFMPEG_LOG_LEVEL, FFMPEG_QUIET)
    try:
        yield
    finally:
        logs.setLogLevel(level)
        if given is None:
            os.environ.pop(FFMPEG_LOG_LEVEL, None)


_QUIET = SharedContext(_silent_opencv)
