"""From the pictures and clips of a prompt to pixel values."""

from __future__ import annotations

import numpy as np

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.processing.media import Image, Video
from flamingo_rt.processing.pictures import open_picture
from flamingo_rt.processing.preprocess import pixel_values


def visual_pixels(visual: Image | Video, config: FlamingoConfig) -> np.ndarray:
    """float32 [F, 3, H, W]: the frames of a clip, or one for a picture. Raises `DataError`."""
    if isinstance(visual, Image):
        frames = [open_picture(visual.source)]
    else:
        from flamingo_rt.processing.video import read_frames  # brings OpenCV, which a picture does not need

        frames = read_frames(visual)
    size = config.vision.image_size
    return np.stack([pixel_values(frame, config.preprocessing, size) for frame in frames])
