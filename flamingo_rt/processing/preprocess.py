"""From visuals to ``pixel_values``: decoded (several in threads), resized to a square, scaled to 0..1, normalised."""

from __future__ import annotations

import hashlib
import os
import threading
import typing
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import PIL.Image
from PIL.Image import Resampling

from flamingo_rt.config import FlamingoConfig, Interpolation, PreprocessingConfig
from flamingo_rt.device_arrays import DeviceFrames, is_device_array
from flamingo_rt.errors import DataError
from flamingo_rt.processing.given_pixels import given_frames
from flamingo_rt.processing.pictures import open_picture
from flamingo_rt.processing.visuals import Image, PixelValues, Visual, is_array

# Pillow decodes without Python's lock. More threads would take the cores that the encoder works on.
THREADS = min(4, os.cpu_count() or 1)
AHEAD = 2 * THREADS  # visuals that are decoded, or being decoded, before they are asked for

FILTERS = {name: Resampling[name.upper()] for name in typing.get_args(Interpolation)}

# Above this many pixels `crop` resizes only the part it keeps: a 1 x 10,000 picture would become 224 x 2,240,000.
MAX_RESIZED_PIXELS = 50_000_000

# A video decoder has threads of its own, and one opened Pillow picture may stand in several places of a prompt.
_ONE_AT_A_TIME = threading.Lock()

# A digest of the content; for an array in device memory its identity, which is good for one call and never cached.
Key = bytes | int


@dataclass(frozen=True, eq=False)
class DecodedVisual:
    """A visual's pixel values, float32 [F, 3, H, W]: the frames of a clip, one for a picture. They are in host memory,
    but for `PixelValues` in device memory. Visuals with equal content have equal keys."""

    visual: Visual
    key: Key
    pixels: np.ndarray | DeviceFrames


def decode_visuals(visuals: Sequence[Visual], config: FlamingoConfig) -> Generator[DecodedVisual, None, None]:
    """Decode visuals in threads and yield them in order, at most `AHEAD` of them before they are asked for.

    A visual in device memory is read in the thread that iterates: its library takes the stream that is current there.
    Raises `DataError` for the first visual that cannot be read. Closing the iterator leaves no thread behind.
    """
    if len(visuals) == 1:  # a thread would only take time to start
        yield decode_visual(visuals[0], config)
        return
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="flamingo-rt-pictures")
    try:
        results: deque[Callable[[], DecodedVisual]] = deque()
        for visual in visuals:
            decode = partial(decode_visual, visual, config)
            results.append(decode if lies_on_device(visual) else pool.submit(decode).result)
            if len(results) == AHEAD:
                yield results.popleft()()
        while results:
            yield results.popleft()()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def decode_visual(visual: Visual, config: FlamingoConfig) -> DecodedVisual:
    """Read one visual and make its pixel values for this model. Raises `DataError`; may be called from many threads."""
    size, preprocessing = config.vision.image_size, config.preprocessing
    pixels: np.ndarray | DeviceFrames
    with nullcontext() if _may_be_decoded_beside_others(visual) else _ONE_AT_A_TIME:
        if isinstance(visual, PixelValues):
            pixels = given_frames(visual, size)
        elif isinstance(visual, Image):
            pixels = pixel_values(open_picture(visual.source, visual.channels), preprocessing, size)[None]
        else:
            from flamingo_rt.processing.video import read_frames  # loads video libraries, which a picture does not need

            pixels = np.stack(read_frames(visual, lambda picture: pixel_values(picture, preprocessing, size)))
    if isinstance(pixels, DeviceFrames):
        return DecodedVisual(visual, id(pixels.array), pixels)
    return DecodedVisual(visual, hashlib.blake2b(pixels.data, digest_size=32).digest(), pixels)


def _may_be_decoded_beside_others(visual: Visual) -> bool:
    if isinstance(visual, Image):
        return isinstance(visual.source, (str, os.PathLike, bytes)) or is_array(visual.source)
    return isinstance(visual, PixelValues)


def visual_pixels(visual: Visual, config: FlamingoConfig) -> np.ndarray:
    """Pixel values float32 [F, 3, H, W] of one visual, in host memory. Raises `DataError` for a visual that cannot be
    read, and for `PixelValues` in device memory."""
    pixels = decode_visual(visual, config).pixels
    if isinstance(pixels, DeviceFrames):
        raise DataError(f"{visual.label} must be in host memory here: copy it, with array.cpu() or CuPy's array.get()")
    return pixels


def lies_on_device(visual: Visual) -> bool:
    """Whether any part of a visual is in device memory."""
    source = visual.array if isinstance(visual, PixelValues) else visual.source
    if isinstance(source, Sequence) and not isinstance(source, (str, bytes)):
        return any(is_device_array(frame) for frame in source)
    return is_device_array(source)


def pixel_values(picture: PIL.Image.Image, config: PreprocessingConfig, size: int) -> np.ndarray:
    """Make the input of the vision encoder, float32 [3, size, size], from an RGB picture.

    ``pad`` fits the whole picture in, centred; the padding is exactly 0, which is the mean colour, or ``fill``.
    ``crop`` computes what CLIP's transform computes with torchvision. ``squash`` ignores the aspect.
    Raises `DataError` when the picture is not RGB or has no pixels.
    """
    if picture.mode != "RGB" or 0 in picture.size:
        raise DataError(
            f"a picture of mode {picture.mode}, {picture.width}x{picture.height}, cannot be preprocessed; "
            f"open it with open_picture"
        )
    resample = FILTERS[config.interpolation]
    if config.resize == "crop":
        picture = _crop(picture, size, resample)
    else:
        picture = picture.resize(_fitting(picture.size, size) if config.resize == "pad" else (size, size), resample)
    mean, std = (np.asarray(each, np.float32)[:, None, None] for each in (config.mean, config.std))
    levels = np.asarray(picture).transpose(2, 0, 1).astype(np.float32)  # [3, height, width], 0..255
    values = (levels / np.float32(255) - mean) / std  # torchvision's order of operations, so that it rounds alike
    if config.resize != "pad":
        return np.ascontiguousarray(values)
    padded = np.zeros((3, size, size), np.float32)
    if config.fill is not None:
        fill = (255 * np.array(config.fill)).astype(np.float32)[:, None, None]
        padded += (fill / np.float32(255) - mean) / std
    top, left = (size - picture.height) // 2, (size - picture.width) // 2
    padded[:, top : top + picture.height, left : left + picture.width] = values
    return padded


def _fitting(extent: tuple[int, int], size: int) -> tuple[int, int]:
    """(width, height) with the long side ``size`` and the aspect kept, no side below 1."""
    longest = max(extent)
    width, height = (max(1, round(side * size / longest)) for side in extent)
    return width, height


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
