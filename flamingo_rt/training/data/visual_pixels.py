"""From a sample's pictures and clips to the vision encoder's input."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL.Image

from flamingo_rt.config import PreprocessingConfig
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.processing.pictures import open_picture
from flamingo_rt.processing.preprocess import pixel_values
from flamingo_rt.processing.visuals import Video, source_label
from flamingo_rt.training.data.augmentation import Augmentation
from flamingo_rt.training.data.samples import DamagedSample, Visual
from flamingo_rt.training.options import DataOptions

Frame = TypeVar("Frame")
Preprocess = Callable[[PIL.Image.Image], Frame]


def visual_pixels(
    visual: Visual, sample: str, options: DataOptions, preprocessing: PreprocessingConfig, size: int,
    change: Augmentation | None = None,
) -> np.ndarray:
    """Pixel values float32 [F, 3, size, size] of the frames that `visual_frames` reads."""

    def preprocess(picture: PIL.Image.Image) -> np.ndarray:
        return pixel_values(change(picture) if change is not None else picture, preprocessing, size)

    return np.stack(visual_frames(visual, sample, options, preprocess))


def visual_frames(visual: Visual, sample: str, options: DataOptions, preprocess: Preprocess[Frame]) -> list[Frame]:
    """The frames of a visual, each preprocessed as it is read: 1 of a picture, ``options.frames`` of a clip.

    A clip's frames are ``options.fps`` a second; where that is more than ``options.frames``, they are spread over the
    whole clip, and of a shorter one the last is repeated, so that all clips of a batch have equally many. A clip that
    does not say when its frames are shown gives those at the centres of ``options.frames`` equal parts of it.
    Raises `DamagedSample`, with the name ``sample``, for what cannot be decoded, and `DependencyError` for a clip that
    needs a library which is not installed.
    """
    if visual.kind == "features":
        raise DamagedSample(sample, f"{visual.name} holds features, not a picture: train flamingo alone takes them")
    with _readable(visual, options) as source:
        try:
            if isinstance(source, Video):
                return _clip_frames(source, options, preprocess)
            return [preprocess(open_picture(source))]
        except DataError as error:
            label = source.label if isinstance(source, Video) else source_label(source)
            raise DamagedSample(sample, str(error).replace(label, visual.name)) from error


@contextmanager
def _readable(visual: Visual, options: DataOptions) -> Iterator[bytes | Path | np.ndarray | Video]:
    """A visual as decoders take it: of a picture its content, of a clip an array or a file."""
    if visual.kind == "image":
        yield visual.content
    elif isinstance(visual.content, np.ndarray):
        yield Video(list(visual.content), options.frames)
    elif isinstance(visual.content, Path):
        yield Video(visual.content, options.frames, options.fps)
    else:
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="flamingo-rt-"))
                path = Path(folder, "clip")  # what it is its content says; the name may be cut, for messages
                path.write_bytes(visual.content)
            except OSError as error:
                raise UsageError(f"cannot write a clip into {tempfile.gettempdir()}: {error.strerror}; make space, or "
                                 "set TMPDIR to another folder") from error
            yield Video(path, options.frames, options.fps)


def _clip_frames(video: Video, options: DataOptions, preprocess: Preprocess[Frame]) -> list[Frame]:
    # Loads video libraries, which a picture does not need.
    from flamingo_rt.processing.video import NoFrameTimes, read_frames

    try:
        frames = read_frames(video, preprocess)
    except NoFrameTimes:
        frames = read_frames(replace(video, fps=None), preprocess)
    return frames + frames[-1:] * (options.frames - len(frames))
