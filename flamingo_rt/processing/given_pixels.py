"""Pixel values preprocessed by the user: checked, and left where they are."""

from __future__ import annotations

import numpy as np

from flamingo_rt.device_arrays import NO_STREAM, DeviceFrames, device_array, is_device_array
from flamingo_rt.errors import DataError
from flamingo_rt.processing.arrays import host_array
from flamingo_rt.processing.visuals import MAX_FRAMES, PixelValues, is_array


def given_frames(visual: PixelValues, size: int) -> np.ndarray | DeviceFrames:
    """Pixel values float32 [F, 3, size, size]: C-contiguous and finite in host memory, or in device memory, where their
    content is not checked.

    Raises `DataError` for an array of another type or shape, one with NaN or infinite values in host memory, and one
    that is not contiguous in device memory, where this cannot put it in order.
    """
    if not is_array(visual.array):
        raise DataError(f"{visual.label} is not an array; PixelValues takes one, Image and Video anything else")
    return _on_device(visual, size) if is_device_array(visual.array) else _on_host(visual, size)


def _on_host(visual: PixelValues, size: int) -> np.ndarray:
    array = host_array(visual.array, visual.label)
    shape = _frames_shape(visual.label, array.dtype, array.shape, size)
    frames = np.ascontiguousarray(array).reshape(shape)
    wrong = np.count_nonzero(~np.isfinite(frames))
    if wrong:
        raise DataError(f"{visual.label} holds {wrong:,} values that are NaN or infinite: look at what computed it")
    return frames


def _on_device(visual: PixelValues, size: int) -> DeviceFrames:
    try:
        located = device_array(visual.array, NO_STREAM)
    except (ValueError, BufferError) as error:
        raise DataError(f"{visual.label} cannot be read: {error} (torch: detach(), contiguous())") from error
    return DeviceFrames(visual.array, _frames_shape(visual.label, located.dtype, located.shape, size))


def _frames_shape(label: str, dtype: np.dtype, shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """[F, 3, size, size], F 1 for a picture. Raises `DataError` unless type and shape are those of pixel values."""
    frames = shape if len(shape) == 4 else (1, *shape)
    if dtype != np.float32 or frames[1:] != (3, size, size) or not 1 <= frames[0] <= MAX_FRAMES:
        raise DataError(
            f"{label} is {dtype} {list(shape)}; this model's pixel values are float32 [3, {size}, {size}], or "
            f"[F, 3, {size}, {size}] for a clip of up to {MAX_FRAMES} frames: preprocess it so, or give an Image of "
            "uint8 [H, W, 3]"
        )
    return frames
