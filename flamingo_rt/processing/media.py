"""The media a prompt can hold: one picture, or one video clip. Types only; `pictures` and `video` read them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image

from flamingo_rt.errors import UsageError

MAX_FRAMES = 1024

PictureSource = str | os.PathLike | bytes | PIL.Image.Image | np.ndarray
VideoSource = str | os.PathLike | Sequence[PictureSource]


# Compared by identity: two arrays have no single truth value to compare by.
@dataclass(frozen=True, eq=False)
class Image:
    """One picture: a path, the bytes of a picture file, a Pillow image, or uint8 [H, W, 3] or [H, W]."""

    source: PictureSource

    @property
    def label(self) -> str:
        """The picture's name in messages."""
        return source_label(self.source)


@dataclass(frozen=True, eq=False)
class Video:
    """One clip: the path of a video file, or a sequence of pictures. The model sees ``frames`` of its frames.

    Raises `UsageError` when ``frames`` is not an integer from 1 to `MAX_FRAMES`.
    """

    source: VideoSource
    frames: int = 8

    def __post_init__(self) -> None:
        if isinstance(self.frames, bool) or not isinstance(self.frames, int) or not 1 <= self.frames <= MAX_FRAMES:
            raise UsageError(f"a clip cannot be read as {self.frames!r} frames: give an integer from 1 to {MAX_FRAMES}")

    @property
    def label(self) -> str:
        """The clip's name in messages."""
        if isinstance(self.source, (str, os.PathLike, bytes)) or not hasattr(self.source, "__len__"):
            return source_label(self.source)
        return f"<clip of {len(self.source)} pictures>"


def source_label(source: Any) -> str:
    """A short name for any source: its path, or what it is."""
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source)
    if isinstance(source, bytes):
        return "<bytes>"
    if isinstance(source, np.ndarray):
        return f"<array {source.dtype} {list(source.shape)}>"
    if isinstance(source, PIL.Image.Image):
        return f"<PIL image {source.mode} {source.width}x{source.height}>"
    return f"<{type(source).__name__}>"
