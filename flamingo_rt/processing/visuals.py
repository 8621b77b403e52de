"""From the pictures and clips of a prompt to pixel values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.device_arrays import DeviceFrames, is_device_array
from flamingo_rt.processing.given_pixels import given_frames
from flamingo_rt.processing.media import Image, PixelValues, Visual
from flamingo_rt.processing.pictures import open_picture
from flamingo_rt.processing.preprocess import pixel_values


def visual_pixels(visual: Visual, config: FlamingoConfig) -> np.ndarray | DeviceFrames:
    """float32 [F, 3, H, W]: the frames of a clip, or one for a picture; in host memory, but for `PixelValues` in device
    memory. Raises `DataError`."""
    size = config.vision.image_size
    if isinstance(visual, PixelValues):
        return given_frames(visual, size)

    def preprocess(picture: PIL.Image.Image) -> np.ndarray:
        return pixel_values(picture, config.preprocessing, size)

    if isinstance(visual, Image):
        return preprocess(open_picture(visual.source, visual.channels))[None]
    from flamingo_rt.processing.video import read_frames  # brings a reader of clips, which a picture does not need

    return np.stack(read_frames(visual, preprocess))


def lies_on_device(visual: Visual) -> bool:
    """Whether something of it is in device memory."""
    source = visual.array if isinstance(visual, PixelValues) else visual.source
    if isinstance(source, Sequence) and not isinstance(source, (str, bytes)):
        return any(is_device_array(frame) for frame in source)
    return is_device_array(source)
