"""The visuals a prompt can hold: a picture, a video clip, or pixel values of either. Types only; `preprocess` reads
them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, Protocol, get_args

import numpy as np
import PIL.Image

from flamingo_rt.device_arrays import is_device_array
from flamingo_rt.errors import UsageError

MAX_FRAMES = 1024
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pbm", ".pfm",
                    ".jp2", ".j2k", ".jfif", ".avif", ".heic")
CLIP_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts", ".m2ts", ".flv",
                 ".ogv", ".3gp", ".apng")


class DlpackArray(Protocol):
    """An array of another library with DLPack: torch, JAX, CuPy."""

    def __dlpack__(self, **options: Any) -> Any: ...

    def __dlpack_device__(self) -> tuple[int, int]: ...


class CudaArray(Protocol):
    """An array in device memory with CUDA's array interface: numba, PyCUDA, camera frames."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


# One line that begins with the root, the current, the parent or the home folder, a drive of Windows, or a scheme.
_BEGINS_AS_A_PATH = re.compile(r"(?:\.{0,2}[/\\]\S|~\S*[/\\]|[A-Za-z]:[/\\]|[A-Za-z][A-Za-z0-9+.-]+://).*")

Array = np.ndarray | DlpackArray | CudaArray
PictureSource = str | os.PathLike | bytes | PIL.Image.Image | Array
VideoSource = str | os.PathLike | Sequence[PictureSource]
Channels = Literal["RGB", "BGR"]


# Compared by identity: two arrays have no single truth value to compare by.
@dataclass(frozen=True, eq=False)
class Image:
    """One picture: a path, the bytes of a picture file, a Pillow image, or an array, uint8 [H, W, 3] or [H, W].

    An array is numpy's or another library's, such as a tensor or a camera frame. Its channels are RGB, or "BGR" as in
    OpenCV's frames. An array in device memory is copied to the host by its library and preprocessed there; give
    `PixelValues` to leave it on the device.

    Raises `UsageError` when ``channels`` is neither "RGB" nor "BGR", and for "BGR" without an array.
    """

    source: PictureSource
    channels: Channels = "RGB"

    def __post_init__(self) -> None:
        _check_channels(self.channels, is_array(self.source), self.label)

    @property
    def label(self) -> str:
        """The picture's name in messages."""
        return source_label(self.source)


@dataclass(frozen=True, eq=False)
class Video:
    """One clip: the path of a video file, a sequence of pictures, or an array, uint8 [T, H, W, 3]. The model sees
    ``frames`` of its frames; only these are copied from a device. ``channels`` is the order of arrays' channels, as in
    `Image`.

    The frames are those shown at the centres of ``frames`` equal intervals of the clip's time (of a sequence's length).
    With ``fps``, for files alone, they are ``fps`` a second, unless that makes more than ``frames``.

    Raises `UsageError` when ``frames`` is not an integer from 1 to `MAX_FRAMES`, ``fps`` is not a number above 0 or
    is given for no file, when ``channels`` is neither "RGB" nor "BGR", and for "BGR" of a file.
    """

    source: VideoSource
    frames: int = 8
    fps: float | None = None
    channels: Channels = "RGB"

    def __post_init__(self) -> None:
        if not _is_number(self.frames, Integral) or not 1 <= self.frames <= MAX_FRAMES:
            raise UsageError(f"a clip cannot be read as {self.frames!r} frames: give an integer from 1 to {MAX_FRAMES}")
        object.__setattr__(self, "frames", int(self.frames))
        _check_channels(self.channels, not isinstance(self.source, (str, os.PathLike, bytes)), self.label)
        if self.fps is None:
            return
        if not _is_number(self.fps, Real) or not 0 < self.fps < math.inf:
            raise UsageError(f"a clip cannot be read at {self.fps!r} frames a second: give a number above 0")
        if not isinstance(self.source, (str, os.PathLike)):
            raise UsageError(f"{self.label} has no time that fps could refer to: leave fps out, or give a video file")

    @property
    def label(self) -> str:
        """The clip's name in messages."""
        if isinstance(self.source, (str, os.PathLike, bytes)) or not hasattr(self.source, "__len__"):
            return source_label(self.source)
        return f"<clip of {len(self.source)} pictures>"


@dataclass(frozen=True, eq=False)
class PixelValues:
    """A preprocessed picture, float32 [3, H, W], or clip, [F, 3, H, W], of which the model sees all frames. H and W are
    the model's image size, the channels RGB and normalised by ``Model.config.preprocessing``; docs/device-arrays.md has
    an example.

    In host memory it is a numpy array or an array with DLPack, such as a tensor, and is treated like a picture. In
    device memory (DLPack or ``__cuda_array_interface__``) it must be C-contiguous and aligned to 256 bytes, and a
    backend that computes there reads it in place; it may be overwritten once the call that was given it
    (`Model.generate`, `Model.prompt`, ...) has returned. Its content is not looked at, so it is encoded in every call,
    once for each call.
    """

    array: Array

    @property
    def label(self) -> str:
        """The pixel values' name in messages."""
        return source_label(self.array)


Visual = Image | Video | PixelValues


def _check_channels(channels: Any, may_be_bgr: bool, label: str) -> None:
    if channels not in get_args(Channels):
        raise UsageError(f"the channels of {label} are {channels!r}: give 'RGB' or, for frames of OpenCV, 'BGR'")
    if channels != "RGB" and not may_be_bgr:
        raise UsageError(f"{label} is not an array: its channels are known, leave channels={channels!r} out")


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def is_array(value: Any) -> bool:
    """Whether a value is an array, of any library and in any memory."""
    return hasattr(value, "__dlpack__") or is_device_array(value)


def source_label(source: Any) -> str:
    """A short name for any source: its path, or its type and shape."""
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source)
    if isinstance(source, bytes):
        return "<bytes>"
    if is_array(source):
        kind = "array" if isinstance(source, np.ndarray) else type(source).__name__
        about = [str(source.dtype)] if hasattr(source, "dtype") else []
        about += [str(list(source.shape))] if hasattr(source, "shape") else []
        return f"<{' '.join([kind, *about])}{' in device memory' if is_device_array(source) else ''}>"
    if isinstance(source, PIL.Image.Image):
        return f"<PIL image {source.mode} {source.width}x{source.height}>"
    return f"<{type(source).__name__}>"


def how_to_wrap(value: Any) -> str:
    """Text for messages: the kind of a value that was given in place of a picture or clip, and how to write it."""
    if isinstance(value, (str, os.PathLike)):
        path = os.fsdecode(value)
        if "://" in path:
            return f"the address {path!r}, and nothing is fetched: save it to a file, and write Image(...) around that"
        kind = "Video" if path.lower().endswith(CLIP_SUFFIXES) else "Image"
        return f"the path {path!r}: write {kind}({path!r})"
    if isinstance(value, bytes):
        return "bytes: write Image(...) around those of a picture file"
    if isinstance(value, PIL.Image.Image):
        return f"a Pillow image ({value.mode}, {value.width}x{value.height}): write Image(...) around it"
    if is_array(value):
        kind = "Video" if len(getattr(value, "shape", ())) == 4 else "Image"
        return (f"an array, {source_label(value)}: write {kind}(...) around it, or PixelValues(...) if it is "
                "preprocessed")
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__}: write Video(...) around the frames of a clip, or give its parts one by one"
    return f"{type(value).__name__}: write Image(...) around a picture, Video(...) around a clip"


def names_a_file(text: str) -> bool:
    """Whether a text is the path of a picture or clip, also one that does not exist.

    It ends as such files' names do, and is a single word, or begins as only a path or an address does, or is in a
    folder that exists, or is the name of a file that exists. Other texts of several words may be prompts that mention
    a file.
    """
    text = text.rstrip()
    if os.path.splitext(text)[1].lower() not in (*PICTURE_SUFFIXES, *CLIP_SUFFIXES):
        return False
    if not any(character.isspace() for character in text) or _BEGINS_AS_A_PATH.fullmatch(text):
        return True
    folder = os.path.dirname(text)
    return os.path.isfile(text) or (bool(folder) and os.path.isdir(folder))
