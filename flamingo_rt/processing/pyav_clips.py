"""Clips by PyAV, an optional library that reports what OpenCV does not: the whole display matrix, and transparency."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import PIL.Image
from PIL.Image import Transpose

from flamingo_rt.errors import DataError
from flamingo_rt.processing import decoded_clip as clip
from flamingo_rt.processing.containers import FORMATS, PROTOCOLS
from flamingo_rt.processing.decoded_clip import ClipFrame, check_frame_size, not_a_clip, not_a_quarter_turn
from flamingo_rt.processing.pictures import open_picture

if TYPE_CHECKING:
    import av

# FFmpeg's own VP8 and VP9 decoders drop the second stream, the transparency; libvpx decodes both.
DECODERS_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}

# With frame threads each thread holds a frame: larger frames are decoded one at a time, in slices.
THREADED_PIXELS = 4096 * 2304

# The display matrix's a, b, c, d, by their signs: (x, y) is shown at (a x + c y, b x + d y), y downwards.
TRANSPOSES = {
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Transpose.ROTATE_180,
    (0, 1, -1, 0): Transpose.ROTATE_270,
    (0, -1, 1, 0): Transpose.ROTATE_90,
    (0, 1, 1, 0): Transpose.TRANSPOSE,
    (0, -1, -1, 0): Transpose.TRANSVERSE,
}


# As in setup.cfg. Earlier versions end the process when options are given for some containers; 19 takes other options.
OLDEST, BELOW = (17, 1), (19, 0)


def installed() -> bool:
    """Whether PyAV is installed, in a supported version, and its libraries load."""
    try:
        import av
    except ImportError:
        return False
    return OLDEST <= tuple(int(part) for part in av.__version__.split(".")[:2]) < BELOW


class PyavClip:
    """An opened clip; see `decoded_clip.Clip`."""

    def __init__(self, container: av.container.InputContainer, label: str) -> None:
        self._container, self._label = container, label
        self._stream = container.streams.video[0]
        if self._stream.codec_context is None:
            raise DataError(f"{label} has a codec that PyAV's FFmpeg cannot decode; convert it, for example to H.264 "
                            "in MP4")
        width, height = self._stream.codec_context.width, self._stream.codec_context.height
        check_frame_size(width, height, label)
        if not (width and height):
            raise DataError(f"{label} does not say how large its frames are, or they have more than the "
                            f"{clip.MAX_FRAME_PIXELS:,} pixels that are read: make it smaller first, or convert it")
        self.stated_frames = self._stream.frames or _frames_of_duration(container, self._stream)

    def frames(self) -> Iterator[ClipFrame]:
        """Decode to the end or to the first undecodable packet. Raises `DataError` for a display matrix that is not
        a multiple of a quarter turn."""
        import av

        decoder = self._decoder()
        try:
            turn = self._declared_turn() if decoder is not self._stream.codec_context else None
            for packet in self._container.demux(self._stream):
                for frame in decoder.decode(packet):
                    yield self._frame(frame, turn)
        except (av.error.FFmpegError, EOFError):
            return

    def _decoder(self) -> av.VideoCodecContext:
        import av

        decoder = self._stream.codec_context
        large = decoder.width * decoder.height > THREADED_PIXELS
        name = DECODERS_WITH_ALPHA.get(decoder.name)
        if name is not None and self._stream.metadata.get("alpha_mode") == "1":
            decoder = cast("av.VideoCodecContext", av.CodecContext.create(name, "r"))
        decoder.options = {"max_pixels": str(clip.MAX_FRAME_PIXELS)}
        decoder.thread_type = "SLICE" if large else "AUTO"
        return decoder

    def _declared_turn(self) -> Any:
        """The display matrix of the stream (PyAV's side data, or None), which FFmpeg gives to frames of its own decoder
        only."""
        for packet in self._container.demux(self._stream):
            for frame in packet.decode():
                self._container.seek(0)
                return frame.side_data.get("DISPLAYMATRIX")
        return None

    def _frame(self, frame: av.VideoFrame, turn: Any) -> ClipFrame:
        pts, base = frame.pts, self._stream.time_base
        start = math.nan if pts is None or base is None else float(pts * base)
        matrix = frame.side_data.get("DISPLAYMATRIX") or turn
        return ClipFrame(frame.width, frame.height, start, lambda: self._picture(frame, matrix))

    def _picture(self, frame: av.VideoFrame, matrix: Any) -> PIL.Image.Image:
        import av

        transpose = _transpose(bytes(matrix), self._label) if matrix is not None else None
        try:
            image = open_picture(_converted(frame, "RGBA")) if self._has_alpha(frame) else _converted(frame, "RGB")
        except (av.error.FFmpegError, ValueError) as error:
            raise DataError(f"{self._label} cannot be converted to RGB: {' '.join(str(error).split())}; convert it, "
                            "for example to H.264 in MP4") from error
        return image if transpose is None else image.transpose(transpose)

    def _has_alpha(self, frame: av.VideoFrame) -> bool:
        if frame.format.has_palette:  # palettes other than PNG's are opaque, whatever their fourth byte is
            return self._stream.codec_context.name == "png"
        return any(component.is_alpha for component in frame.format.components)


@contextmanager
def open_clip(path: str, label: str) -> Iterator[PyavClip]:
    """Open a clip, letting FFmpeg see no other file. Raises `DataError` for a file that is not a clip or has no
    frames."""
    import av

    options = {
        "format_whitelist": ",".join(FORMATS), "protocol_whitelist": ",".join(PROTOCOLS),
        "max_pixels": str(clip.MAX_FRAME_PIXELS),  # for the frames that FFmpeg may decode to probe the stream
    }
    try:
        container = av.open(f"file:{os.path.abspath(path)}", options=options, metadata_errors="replace")
    except (av.error.FFmpegError, EOFError, OSError, ValueError) as error:
        raise not_a_clip(label) from error
    with closing(container):
        if not container.streams.video:
            raise DataError(f"{label} holds no pictures, only other streams; is it a clip?")
        yield PyavClip(container, label)


def _frames_of_duration(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """The frame count from duration and rate, as OpenCV computes it; 0 where either is not stated."""
    if not container.duration or container.duration < 0 or not stream.average_rate:
        return 0
    return int(container.duration / 1e6 * float(stream.average_rate) + 0.5)


def _converted(frame: av.VideoFrame, mode: str) -> PIL.Image.Image:
    # OpenCV's filter for chroma, so that both libraries give the same pictures.
    plane = frame.reformat(format="rgb24" if mode == "RGB" else "rgba", interpolation="BICUBIC").planes[0]
    content = cast("bytes", plane)  # it has the buffer protocol, which PyAV's types do not say
    return PIL.Image.frombuffer(mode, (frame.width, frame.height), content, "raw", mode, plane.line_size, 1)


def _transpose(matrix: bytes, label: str) -> Transpose | None:
    """The operation that shows a frame as its display matrix says, apart from scale.

    Raises `DataError` for an angle that is not a multiple of 90 degrees.
    """
    a, b, _, c, d = (int(number) for number in np.frombuffer(matrix, np.int32)[:5])
    largest = max(map(abs, (a, b, c, d)))
    if largest == 0:  # no matrix at all
        return None
    # In a quarter turn one diagonal is zero; the scale may differ across and down.
    signs = tuple((number > 0) - (number < 0) if abs(number) > 0.02 * largest else 0 for number in (a, b, c, d))
    if signs not in TRANSPOSES:
        raise not_a_quarter_turn(label, math.degrees(math.atan2(b, a)))
    return TRANSPOSES[signs]
