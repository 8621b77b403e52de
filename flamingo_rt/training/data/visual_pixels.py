"""From a sample's pictures and clips to the vision encoder's input."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image

from flamingo_rt.config import PreprocessingConfig
from flamingo_rt.errors import DataError
from flamingo_rt.processing.pictures import open_picture
from flamingo_rt.processing.preprocess import pixel_values
from flamingo_rt.processing.visuals import Video
from flamingo_rt.training.data.augmentation import Augmentation
from flamingo_rt.training.data.samples import DamagedSample, Visual
from flamingo_rt.training.options import DataOptions

Preprocess = Callable[[PIL.Image.Image], np.ndarray]


def visual_pixels(
    visual: Visual, sample: str, options: DataOptions, preprocessing: PreprocessingConfig, size: int,
    change: Augmentation | None = None,
) -> np.ndarray:
    """Pixel values float32 [F, 3, size, size]: 1 frame of a picture, ``options.frames`` of a clip.

    A clip's frames are ``options.fps`` a second; where that is more than ``options.frames``, they are spread over the
    whole clip, and of a shorter one the last is repeated, so that all clips of a batch have equally many.
    Raises `DamagedSample`, with the name ``sample``, for what cannot be decoded, and `DependencyError` for a clip that
    needs a library which is not installed.
    """

    def preprocess(picture: PIL.Image.Image) -> np.ndarray:
        return pixel_values(change(picture) if change is not None else picture, preprocessing, size)

    try:
        if visual.kind == "image":
            return preprocess(open_picture(visual.content))[None]
        return _clip_pixels(visual, options, preprocess)
    except DataError as error:
        raise DamagedSample(sample, str(error).replace("<bytes>", visual.name)) from error


def _clip_pixels(visual: Visual, options: DataOptions, preprocess: Preprocess) -> np.ndarray:
    from flamingo_rt.processing.video import read_frames  # loads video libraries, which a picture does not need

    content = visual.content
    if isinstance(content, np.ndarray):
        frames = read_frames(Video(content, options.frames), preprocess)
    elif isinstance(content, Path):
        frames = read_frames(Video(content, options.frames, options.fps), preprocess)
    else:
        with tempfile.NamedTemporaryFile(suffix=Path(visual.name).suffix) as file:  # decoders take files alone
            file.write(content)
            file.flush()
            try:
                frames = read_frames(Video(file.name, options.frames, options.fps), preprocess)
            except DataError as error:
                raise DataError(str(error).replace(file.name, visual.name)) from error
    frames += frames[-1:] * (options.frames - len(frames))
    return np.stack(frames)
