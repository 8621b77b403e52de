"""Features that the frozen encoder gave before, or that something else made in its form, as ``.npy`` files in place of
pictures: float16 or float32 [S, Dv]."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flamingo_rt.training.data.samples import DamagedSample, Visual

FEATURES_SUFFIX = ".npy"


def read_features(visual: Visual, sample: str, shape: tuple[int, int]) -> np.ndarray:
    """The features float16 [1, S, Dv] in the file of a visual; ``shape`` is the model's (S, Dv). Numbers beyond
    float16's largest become it.

    Raises `DamagedSample`, with the name ``sample``, for a file that is no such array or holds NaN.
    """
    assert isinstance(visual.content, Path)
    try:
        array = np.load(visual.content, mmap_mode="r", allow_pickle=False)  # its shape is known before it is read
    except (OSError, ValueError, EOFError, SyntaxError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "it is no whole file of NumPy's format"
        raise DamagedSample(sample, f"{visual.name} cannot be read as features: {reason}") from error
    if not isinstance(array, np.ndarray) or array.dtype not in (np.float16, np.float32):
        raise DamagedSample(sample, f"{visual.name} holds {getattr(array, 'dtype', 'no array')}: features are float16 "
                                    "or float32")
    if array.shape != shape:
        raise DamagedSample(sample, f"{visual.name} has the shape {list(array.shape)}: the model's encoder gives "
                                    f"{list(shape)}")
    largest = np.finfo(np.float16).max
    features = np.clip(array, -largest, largest).astype(np.float16)[None]
    if np.isnan(features).any():
        raise DamagedSample(sample, f"{visual.name} holds NaN")
    return features
