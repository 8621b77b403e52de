"""From a visual to ``pixel_values``: read, resize to a square, scale to 0..1, normalise."""

from __future__ import annotations

import typing
from collections.abc import Sequence

import numpy as np
import PIL.Image
from PIL.Image import Resampling

from flamingo_rt.config import FlamingoConfig, Interpolation, PreprocessingConfig
from flamingo_rt.device_arrays import DeviceFrames, is_device_array
from flamingo_rt.errors import DataError
from flamingo_rt.processing.given_pixels import given_frames
from flamingo_rt.processing.pictures import open_picture
from flamingo_rt.processing.visuals import Image, PixelValues, Visual

FILTERS = {name: Resampling[name.upper()] for name in typing.get_args(Interpolation)}

# Above this many pixels `crop` resizes only the part it keeps: a 1 x 10,000 picture would become 224 x 2,240,000.
MAX_RESIZED_PIXELS = 50_000_000


def pixel_values(picture: PIL.Image.Image, config: PreprocessingConfig, size: int) -> np.ndarray:
    """Make the input of the vision encoder, float32 [3, size, size], of an RGB picture.

    ``pad`` fits the whole picture in, centred; the padding is exactly 0, which is the mean colour, or ``fill``.
    ``crop`` computes what CLIP's transform does with torchvision. ``squash`` ignores the aspect.
    Raises `DataError` when the picture is not RGB or has no pixels.
    """
    if picture.mode != "RGB" or 0 in picture.size:
        raise DataError(
            f"a picture of mode {picture.mode}, {picture.width}x{picture.height}, cannot be preprocessed; "
            f"open it with open_picture"
        )
    resample = FILTERS[config.interpolation]
    if config.resize == "pad":
        fitted = np.asarray(picture.resize(_fitting(picture.size, size), resample))
        return _pad(_normalise(fitted, config), size, config)
    if config.resize == "crop":
        return _normalise(np.asarray(_crop(picture, size, resample)), config)
    return _normalise(np.asarray(picture.resize((size, size), resample)), config)


def _normalise(levels: np.ndarray, config: PreprocessingConfig) -> np.ndarray:
    """[H, W, 3] of 0..255 -> float32 [3, H, W]; in torchvision's order of operations, so that it rounds alike."""
    values = levels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)  # [3, H, W], 0..1
    mean = np.asarray(config.mean, np.float32)[:, None, None]
    std = np.asarray(config.std, np.float32)[:, None, None]
    return np.ascontiguousarray((values - mean) / std)


def _fitting(extent: tuple[int, int], size: int) -> tuple[int, int]:
    """(width, height) with the long side ``size`` and the aspect kept, but no side of 0."""
    longest = max(extent)
    width, height = (max(1, round(side * size / longest)) for side in extent)
    return width, height


def _pad(values: np.ndarray, size: int, config: PreprocessingConfig) -> np.ndarray:
    _, height, width = values.shape
    top, left = (size - height) // 2, (size - width) // 2
    padded = np.zeros((3, size, size), np.float32)
    if config.fill is not None:
        padded += _normalise(255 * np.array(config.fill).reshape(1, 1, 3), config)
    padded[:, top : top + height, left : left + width] = values
    return padded


def _crop(picture: PIL.Image.Image, size: int, resample: Resampling) -> PIL.Image.Image:
    """The centre [size, size] of the picture resized to a short side of ``size``, rounded as torchvision rounds."""
    short, long = min(picture.size), max(picture.size)
    long_resized = int(size * long / short)
    width, height = (size, long_resized) if picture.width <= picture.height else (long_resized, size)
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    box = (left, top, left + size, top + size)
    if width * height <= MAX_RESIZED_PIXELS:
        return picture.resize((width, height), resample).crop(box)
    across, down = picture.width / width, picture.height / height  # source pixels per resized pixel
    source_box = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
    return picture.resize((size, size), resample, box=source_box)


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
