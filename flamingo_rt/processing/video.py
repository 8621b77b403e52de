"""From a clip to the frames the model sees, evenly spaced in time."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import PIL.Image

from flamingo_rt.errors import DataError
from flamingo_rt.processing import animations, opencv_clips, pyav_clips
from flamingo_rt.processing.decoded_clip import Clip, check_frame_size
from flamingo_rt.processing.frame_times import frame_indices, frames_in_time, read_timeline
from flamingo_rt.processing.input_files import open_file
from flamingo_rt.processing.pictures import open_picture
from flamingo_rt.processing.visuals import Video, is_array

Frame = TypeVar("Frame")
Preprocess = Callable[[PIL.Image.Image], Frame]

# A file's size bounds how much of it is decoded: a few bytes of header can repeat the same frames without end. A still
# hour of 1080p has some 100,000 pixels, and a tenth of a frame, for each byte.
PIXELS_PER_BYTE, LEAST_PIXELS, MOST_PIXELS = 200_000, 10**10, 10**12  # 10^12: 4.5 hours of 1080p, 30 frames a second
BYTES_PER_FRAME, LEAST_FRAMES, MOST_FRAMES = 8, 10_000, 1_000_000

Opener = Callable[[], AbstractContextManager[Clip]]


class NoFrameTimes(DataError):
    """A clip does not say when its frames are shown, so that none can be chosen by time."""


@overload
def read_frames(video: Video) -> list[PIL.Image.Image]: ...
@overload
def read_frames(video: Video, preprocess: Preprocess[Frame]) -> list[Frame]: ...
def read_frames(video: Video, preprocess: Preprocess[Any] = lambda picture: picture) -> list[Any]:
    """Read ``video.frames`` RGB pictures, or fewer with ``video.fps``, chosen by `frames_in_time`; each is preprocessed
    as it comes, so that only one is held whole.

    A file is decoded from its start to its end, because the frame count in its header may be missing or wrong; frames
    after undecodable data are not part of the clip. Pictures of a sequence, and frames without timestamps, are chosen
    by index, by `frame_indices`. Animated pictures are read by Pillow, other files by PyAV, or by OpenCV without it.
    Raises `DataError` when the clip is missing, empty, cannot be decoded or has more frames or pixels than are decoded,
    `NoFrameTimes` for ``video.fps`` of frames without timestamps, and `DependencyError` when a file needs a library
    that is not installed.
    """
    source = video.source
    if isinstance(source, (str, os.PathLike)):
        return _read_file(os.fsdecode(source), video, preprocess)
    if isinstance(source, Sequence) and not isinstance(source, (bytes, bytearray)):
        return _read_sequence(source, video, preprocess)
    if is_array(source) and len(getattr(source, "shape", ())) == 4:  # [T, H, W, 3]
        return _read_sequence(source, video, preprocess)
    raise DataError(f"{video.label} is not a clip; give the path of a video file or a sequence of pictures")


def _read_sequence(source: Sequence[Any], video: Video, preprocess: Preprocess[Frame]) -> list[Frame]:
    if not len(source):
        raise DataError(f"{video.label} has no frames; give one picture or more")
    indices = frame_indices(len(source), video.frames)
    kept: dict[int, Frame] = {}
    for index in sorted(set(indices)):
        try:
            kept[index] = preprocess(open_picture(source[index], video.channels))
        except DataError as error:
            raise DataError(f"frame {index} of {video.label}: {error}") from error
    return [kept[index] for index in indices]


def _read_file(path: str, video: Video, preprocess: Preprocess[Frame]) -> list[Frame]:
    with open_file(path) as file:
        beginning = file.read(16)
        file_size = file.seek(0, os.SEEK_END)
    reader, quiet = _reader(beginning)
    reading = _Reading(lambda: reader.open_clip(path, video.label), video.label, _Bounds.of(file_size), preprocess)
    with quiet:
        reading.run_to_the_end(video.frames)
        indices = _chosen(reading, video)
        if not reading.kept.keys() >= set(indices):  # the header was wrong or the rate varies; the times are known now
            reading.run_again(indices)
    if not reading.kept.keys() >= set(indices):
        raise DataError(f"{video.label} decodes differently from one reading to the next; convert it or copy it again")
    return [reading.kept[index] for index in indices]


def _reader(beginning: bytes) -> tuple[Any, AbstractContextManager[Any]]:
    """The module that reads a file with this beginning, and a context that keeps its library quiet."""
    if animations.is_animation(beginning):
        return animations, nullcontext()
    if pyav_clips.installed():
        return pyav_clips, nullcontext()
    return opencv_clips, opencv_clips.QUIET


def _chosen(reading: _Reading, video: Video) -> list[int]:
    count = len(reading.starts)
    if count == 0:
        raise DataError(f"{video.label} has no frame that can be decoded; convert it, for example to H.264 in MP4")
    timeline = read_timeline(reading.starts, reading.end)
    if timeline is not None:
        return frames_in_time(timeline, video.frames, video.fps)
    if video.fps is not None:
        raise NoFrameTimes(f"{video.label} does not say when its frames are shown: leave fps out, to take "
                           f"{video.frames} frames by their number")
    return frame_indices(count, video.frames)


@dataclass(frozen=True)
class _Bounds:
    """The most frames and pixels decoded from one clip."""

    frames: int
    pixels: int

    @classmethod
    def of(cls, file_size: int) -> _Bounds:
        pixels = min(LEAST_PIXELS + PIXELS_PER_BYTE * file_size, MOST_PIXELS)
        return cls(min(LEAST_FRAMES + file_size // BYTES_PER_FRAME, MOST_FRAMES), pixels)


class _Reading:
    """The reading of one clip: preprocessed frames that are kept, by index, and the start times of all frames."""

    def __init__(self, opener: Opener, label: str, bounds: _Bounds, preprocess: Preprocess[Any]) -> None:
        self._opener, self._label, self._bounds, self._preprocess = opener, label, bounds, preprocess
        self.kept: dict[int, Any] = {}
        self.starts: list[float] = []
        self.end: float | None = None

    def run_to_the_end(self, frames: int) -> None:
        """Decode all frames; keep those that will be wanted if the header is right and the rate constant."""
        with self._opener() as clip:
            self._run(clip, set(frame_indices(clip.stated_frames, frames)) if clip.stated_frames else set(), None)

    def run_again(self, indices: Collection[int]) -> None:
        """Decode up to the last of the indices and keep these frames."""
        self.kept, self.starts = {}, []
        with self._opener() as clip:
            self._run(clip, set(indices), max(indices))

    def _run(self, clip: Clip, wanted: set[int], last: int | None) -> None:
        pixels = 0
        for index, frame in enumerate(clip.frames()):
            check_frame_size(frame.width, frame.height, self._label)
            pixels += frame.width * frame.height
            if index == self._bounds.frames or pixels > self._bounds.pixels:
                raise DataError(f"{self._label} goes on after {index:,} frames of {frame.width:,} x {frame.height:,} "
                                "pixels, more than are decoded from a file of its size: cut it shorter, or convert it")
            self.starts.append(frame.start)
            self.end = frame.end
            if index in wanted:
                self.kept[index] = self._preprocess(frame.picture())
            if index == last:
                return
