"""Clips by OpenCV, where PyAV is not installed. The only file of the runtime that uses OpenCV."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from flamingo_rt.errors import DataError, DependencyError
from flamingo_rt.processing.containers import FORMATS, PROTOCOLS, declared
from flamingo_rt.processing.decoded_clip import ClipFrame, check_frame_size, not_a_clip, not_a_quarter_turn
from flamingo_rt.processing.input_files import open_file
from flamingo_rt.processing.shared_context import SharedContext

if TYPE_CHECKING:
    import cv2

LONGEST = 1e9  # seconds, 32 years
EXTRA = "flamingo-rt[video]"
OPENCV_SILENT = 0  # LOG_LEVEL_SILENT
FFMPEG_LOG_LEVEL = "OPENCV_FFMPEG_LOGLEVEL"
FFMPEG_QUIET = "-8"  # AV_LOG_QUIET
FFMPEG_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
# OpenCV's syntax: name;value|name;value
CONFINED = f"format_whitelist;{','.join(FORMATS)}|protocol_whitelist;{','.join(PROTOCOLS)}"

# OpenCV's codes of pixel layouts with alpha, from FFmpeg's table of raw formats: whole codes of packed layouts, and the
# beginnings of planar ones (their endings, reversed, where they are big-endian).
PACKED_WITH_ALPHA = frozenset(
    {b"RGBA", b"BGRA", b"ARGB", b"ABGR", b"RBA@", b"@RBA", b"BRA@", b"@BRA", b"AYUV", b"VUYA", b"UYVA"}
)
PLANES_WITH_ALPHA = (b"Y2", b"Y4", b"G4")
PALETTE = b"PAL8"
PNG_CODEC = b"MPNG"  # the one codec of palettes that may be transparent
OPAQUE_BY_HABIT = (b"FFV1", b"ffv1")  # OpenCV's own writer stores opaque clips with an alpha of 255
LOG = logging.getLogger(__name__)


class OpencvClip:
    """An opened clip; see `decoded_clip.Clip`."""

    def __init__(self, capture: cv2.VideoCapture, label: str) -> None:
        cv2 = _opencv()
        self._capture, self._label = capture, label
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.stated_frames = int(count) if 0 < count < 2**31 else 0
        self._width, self._height = (
            int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        )
        check_frame_size(self._width, self._height, label)
        self._index = -1  # the frame decoded last
        self._first_picture = b""  # digest of frame 0
        self._compared = self._moves = False  # whether later frames were compared with it, and differed

    def frames(self) -> Iterator[ClipFrame]:
        """Decode to the end or to the first undecodable data. Raises `DataError` for OpenCV's errors."""
        cv2 = _opencv()
        try:
            while self._capture.grab():
                self._index += 1
                start = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                if abs(start) > LONGEST:  # OpenCV 4's arithmetic on an unknown start time
                    start = math.nan
                if self._index == 0 and _loses_interlaced_frames():
                    self._pixels()  # kept for the comparison with later frames
                yield ClipFrame(self._width, self._height, start, self._picture)
        except cv2.error as error:
            raise self._undecodable(str(error)) from error

    def _picture(self) -> PIL.Image.Image:
        pixels = self._pixels()
        return PIL.Image.frombuffer("RGB", pixels.shape[1::-1], pixels, "raw", "BGR", pixels.strides[0], 1)

    def _pixels(self) -> np.ndarray:
        cv2 = _opencv()
        try:
            read, pixels = self._capture.retrieve()  # uint8 [H, W, 3], BGR
        except cv2.error as error:
            raise self._undecodable(str(error)) from error
        if not read or pixels is None:
            raise self._undecodable("no picture comes out")
        if _loses_interlaced_frames():
            self._compare(pixels)
        return pixels

    def check_pictures(self) -> None:
        """Raise `DependencyError` when all of several frames came out alike. OpenCV 5 returns stale memory, without an
        error, for interlaced frames that it cannot convert."""
        if self._compared and not self._moves:
            raise _needs_pyav(self._label, "shows the same picture in all frames, or is interlaced")

    def _compare(self, pixels: np.ndarray) -> None:
        if self._moves:
            return
        digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()
        if self._index == 0:
            self._first_picture = digest
        else:
            self._compared, self._moves = True, digest != self._first_picture

    def _undecodable(self, reason: str) -> DataError:
        return DataError(f"frame {self._index} of {self._label} cannot be decoded: {' '.join(reason.split())}; "
                         "convert it or copy it again")


@contextmanager
def open_clip(path: str, label: str) -> Iterator[OpencvClip]:
    """Open a clip, letting FFmpeg see no other file.

    Raises `DataError` for a file that is not a clip, and `DependencyError` without OpenCV, or for a mirrored or
    transparent clip, which OpenCV would show wrongly.
    """
    cv2 = _opencv()
    with open_file(path) as file:
        header = declared(file)
    if header.mirrored:
        raise _needs_pyav(label, "is to be shown mirrored")
    if header.transparent:
        raise _needs_pyav(label, "has transparent parts")
    with _CONFINED:  # changes the process's environment: held no longer than opening takes
        # FFmpeg alone: other backends take a name for a device or a numbered series.
        capture = cv2.VideoCapture(_file_url(path, label), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise not_a_clip(label) if _has_ffmpeg() else _without_ffmpeg(label)
        angle = capture.get(cv2.CAP_PROP_ORIENTATION_META)
        if angle % 90:
            raise not_a_quarter_turn(label, angle)
        if _has_alpha(capture):
            if _codec(capture) not in OPAQUE_BY_HABIT:
                raise _needs_pyav(label, "may have transparent parts")
            LOG.warning("%r may have transparent parts, which OpenCV does not show: pip install '%s'", label, EXTRA)
        clip = OpencvClip(capture, label)
        yield clip
        clip.check_pictures()
    finally:
        capture.release()


def _file_url(path: str, label: str) -> str | bytes:
    """The path as a ``file:`` URL, so that no name is taken for another protocol. Raises `DataError` for a name that is
    not UTF-8 with OpenCV before 4.12; given as a str, it would end the process with any version."""
    url = f"file:{os.path.abspath(path)}"
    try:
        url.encode("utf-8")
    except UnicodeEncodeError as error:
        if _version() < (4, 12):
            raise DataError(f"{label!r} has a name that is not UTF-8, which OpenCV cannot open: rename it") from error
        return os.fsencode(url)
    return url


def _has_ffmpeg() -> bool:
    """Whether OpenCV reads files by FFmpeg; a system's own may have been built without."""
    cv2 = _opencv()
    return cv2.CAP_FFMPEG in cv2.videoio_registry.getStreamBackends()


def _without_ffmpeg(label: str) -> DependencyError:
    cv2 = _opencv()
    return DependencyError(f"{label} cannot be read: OpenCV {cv2.__version__} ({cv2.__file__}) was built without "
                           f"FFmpeg: pip install '{EXTRA}'")


def _loses_interlaced_frames() -> bool:
    return _version() >= (5, 0)


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in _opencv().__version__.split(".")[:2])


def _needs_pyav(label: str, what: str) -> DependencyError:
    return DependencyError(f"{label} {what}, which OpenCV does not show: pip install '{EXTRA}', or convert it")


def _has_alpha(capture: cv2.VideoCapture) -> bool:
    layout = _four_letters(capture, _opencv().CAP_PROP_CODEC_PIXEL_FORMAT)
    planes = layout[:2] in PLANES_WITH_ALPHA or layout[:1:-1] in PLANES_WITH_ALPHA
    return planes or layout in PACKED_WITH_ALPHA or (layout == PALETTE and _codec(capture) == PNG_CODEC)


def _codec(capture: cv2.VideoCapture) -> bytes:
    return _four_letters(capture, _opencv().CAP_PROP_FOURCC)


def _four_letters(capture: cv2.VideoCapture, name: int) -> bytes:
    return (int(capture.get(name)) & 0xFFFFFFFF).to_bytes(4, "little")


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise DependencyError(f"reading video files needs OpenCV or PyAV: pip install opencv-python-headless, or "
                              f"'{EXTRA}'") from error
    return cv2


@contextmanager
def _silent_opencv() -> Iterator[None]:
    """Keep OpenCV and FFmpeg from writing to stderr.

    FFmpeg reads its level from the environment at its first use in the process; an application that used OpenCV's
    videos before keeps its level.
    """
    cv2 = _opencv()
    logs = getattr(cv2.utils, "logging", cv2)  # OpenCV 5, 4
    level = logs.getLogLevel()
    logs.setLogLevel(OPENCV_SILENT)
    try:
        with _environment(FFMPEG_LOG_LEVEL, os.environ.get(FFMPEG_LOG_LEVEL, FFMPEG_QUIET)):
            yield
    finally:
        logs.setLogLevel(level)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable, and restore its former value."""
    given = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if given is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = given


QUIET = SharedContext(_silent_opencv)
# Replaces what the application may have set there for its cameras, while a file is opened.
_CONFINED = SharedContext(lambda: _environment(FFMPEG_OPTIONS, CONFINED))
