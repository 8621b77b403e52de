"""From any picture source to an upright 8-bit RGB picture, or a `DataError` that says why not."""

from __future__ import annotations

import io
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import BinaryIO

import numpy as np
import PIL.Image
import PIL.ImageFile
from PIL.Image import Transpose

from flamingo_rt.errors import DataError
from flamingo_rt.processing.arrays import host_array
from flamingo_rt.processing.input_files import open_file
from flamingo_rt.processing.picture_samples import settle, stated_samples, unread_kind, unreadable
from flamingo_rt.processing.picture_strips import is_plain, rgb_over_white
from flamingo_rt.processing.shared_context import SharedContext
from flamingo_rt.processing.visuals import Channels, PictureSource, is_array, source_label

MAX_PIXELS = 100_000_000
# These decoders take more bytes a pixel than the others (docs/pictures.md has a table): at most 1.3 GB with these
# limits.
FEWER_PIXELS = {"WEBP": 60_000_000, "AVIF": 60_000_000, "JPEG2000": 40_000_000}
LARGE_PIXELS = 40_000_000  # above: decoded one at a time, however many threads read pictures

# Only formats that begin with a signature and decode in this process: EPS, for one, would start Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")

ORIENTATION_TAG = 0x0112
UPRIGHT: dict[object, Transpose] = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}

# Pillow logs some damage as an error, which Python prints when an application has set up no logging.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@contextmanager
def _ignored_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _discarded_stderr() -> Iterator[None]:
    """Discard what the process writes to file descriptor 2, where C libraries print past Python."""
    try:
        kept = os.dup(2)
    except OSError:  # closed: nothing can be printed there
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


# Formats in which `settle` and `stated_samples` need the file: once Pillow has decoded it, they can no longer tell.
REREAD = ("PNG", "GIF", "TIFF", "JPEG2000")
HOLD_THEIR_DECODER = ("WEBP", "AVIF")  # as long as they live: twice the picture's memory

NO_WARNINGS = SharedContext(_ignored_warnings)
_ONE_LARGE = threading.Lock()
_NO_STDERR = SharedContext(_discarded_stderr)


def open_picture(source: PictureSource, channels: Channels = "RGB") -> PIL.Image.Image:
    """Read a picture: its first frame, turned upright by its EXIF orientation, over white where it is transparent.

    ``source`` is a path, the bytes of a picture file, a Pillow image, or an array of any library, uint8 [H, W, 3] in
    the order of ``channels`` or [H, W] grey; one in device memory is copied by `host_array`. Returns an RGB image of at
    most `MAX_PIXELS` pixels that shares no memory with the source. Raises `DataError` for anything else; the size is
    checked before anything is decoded. docs/pictures.md says what is read, and how.
    """
    label = source_label(source)
    if is_array(source):
        return _from_array(host_array(source, label), channels, label)
    if channels != "RGB":
        raise DataError(f"{label} is not an array: {channels} is the order of an array's channels; leave it out")
    file: BinaryIO
    if isinstance(source, (str, os.PathLike)):
        file = open_file(source)
    elif isinstance(source, bytes) and source:
        file = io.BytesIO(source)
    elif isinstance(source, PIL.Image.Image):
        content = _undecoded_file(source, label)
        if content is None:
            return _from_pillow(source, label)
        file = io.BytesIO(content)
    else:
        raise _no_picture(source, label)
    with file, NO_WARNINGS:
        PIL.Image.init()
        try:
            image = PIL.Image.open(file, formats=_readable_formats())
        except Exception as error:  # decoders raise anything at all for damaged bytes
            raise _cannot_be_opened(error, file, label) from error
        with image:
            _check_extent(image.size, FEWER_PIXELS.get(image.format or "", MAX_PIXELS), label)
            with _ONE_LARGE if image.width * image.height > LARGE_PIXELS else nullcontext():
                picture = _to_rgb(image, label, reopen=lambda: PIL.Image.open(file, formats=_readable_formats()))
                return picture.copy() if picture is image and image.format in HOLD_THEIR_DECODER else picture


def _readable_formats() -> list[str]:
    """Those of `FORMATS` that this Pillow was built with; `PIL.Image.init` must have been called."""
    return [name for name in FORMATS if name in PIL.Image.OPEN]


def _to_rgb(
    image: PIL.Image.Image, label: str, reopen: Callable[[], PIL.ImageFile.ImageFile] | None = None
) -> PIL.Image.Image:
    """Decode ``image`` and make it upright 8-bit RGB; returns the image itself if it is that already. ``reopen`` opens
    the image's file a second time, for an image that was opened here.

    Raises `DataError`, also for whatever Pillow's decoders raise.
    """
    try:
        if reopen is not None and isinstance(image, PIL.ImageFile.ImageFile):
            settle(image, reopen)
        samples = stated_samples(image, label)
        # Only libtiff prints, so that other threads lose their stderr for no other format.
        with _NO_STDERR if image.format == "TIFF" else nullcontext():
            image.load()
        turn = UPRIGHT.get(_orientation(image))  # after loading: Pillow turns TIFF pictures itself while it loads
        picture = image if is_plain(image, samples) else rgb_over_white(image, samples, label)
        if turn is not None:
            picture = picture.transpose(turn)
            picture.info = {}  # an orientation kept here would turn the picture again when it is next opened
    except DataError:
        raise
    except Exception as error:  # decoders raise anything at all for damaged bytes
        raise _damaged(label, error) from error
    return picture


def _orientation(image: PIL.Image.Image) -> object:
    try:
        return image.getexif().get(ORIENTATION_TAG)
    except Exception:  # unreadable metadata does not make the picture unreadable
        return None


def _undecoded_file(image: PIL.Image.Image, label: str) -> bytes | None:
    """The file behind a Pillow image that has not been decoded yet, for the formats in `REREAD`; None for any other
    image."""
    file = getattr(image, "fp", None)
    if image.format not in REREAD or not getattr(image, "tile", None) or file is None or image.tell() != 0:
        return None
    try:
        place = file.tell()
        file.seek(0)
        content = file.read()
        file.seek(place)
    except (OSError, ValueError) as error:  # ValueError: closed
        raise _damaged(label, error) from error
    return content


def _from_pillow(image: PIL.Image.Image, label: str) -> PIL.Image.Image:
    """The picture in a Pillow image. The image stays as it is, but Pillow decodes it."""
    with NO_WARNINGS:
        _check_extent(image.size, FEWER_PIXELS.get(image.format or "", MAX_PIXELS), label)
        picture = _to_rgb(image, label)
        return picture.copy() if picture is image else picture


def _from_array(array: np.ndarray, channels: Channels, label: str) -> PIL.Image.Image:
    shape_fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not shape_fits:
        raise DataError(
            f"{label} is not a picture; give uint8 values, shape [H, W, 3] (RGB, or BGR with channels='BGR') or [H, W] "
            "(grey), or PixelValues of what is preprocessed already"
        )
    _check_extent((array.shape[1], array.shape[0]), MAX_PIXELS, label)
    if array.ndim == 2:
        return PIL.Image.fromarray(np.ascontiguousarray(array)).convert("RGB")
    return PIL.Image.fromarray(np.ascontiguousarray(array if channels == "RGB" else array[:, :, ::-1]))


def _check_extent(size: tuple[int, int], most: int, label: str) -> None:
    """Raise `DataError` for a picture of ``size`` (width, height) without pixels, or with more than ``most``."""
    width, height = size
    if width < 1 or height < 1:
        raise DataError(f"{label} is {width} x {height} pixels: there is nothing in it; give another picture")
    if width * height > min(most, MAX_PIXELS):
        raise _too_large(label, f"{width:,} x {height:,} pixels", min(most, MAX_PIXELS))


def _cannot_be_opened(error: Exception, file: BinaryIO, label: str) -> DataError:
    """The error for a file in which Pillow finds no picture: what it is instead, as far as that is known."""
    if isinstance(error, PIL.Image.DecompressionBombError):  # Pillow's own limit, met before ours can be
        count = re.search(r"\d+", str(error))
        return _too_large(label, f"{int(count[0]):,} pixels" if count else "too many pixels")
    if not isinstance(error, PIL.UnidentifiedImageError):
        return _damaged(label, error)
    kind = unread_kind(file)
    if kind:
        return unreadable(label, kind)
    file.seek(0)
    return DataError(
        f"{label} is not a picture this can read, or its header is damaged: it begins with {file.read(12)!r}; "
        f"give one of {', '.join(_readable_formats())}"
    )


def _no_picture(source: object, label: str) -> DataError:
    if isinstance(source, bytes):
        return DataError(f"{label}: no picture in 0 bytes; was the file read to its end before?")
    return DataError(
        f"{label} is not a picture; give a path, the bytes of a picture file, a Pillow image or a uint8 array"
    )


def _too_large(label: str, extent: str, most: int = MAX_PIXELS) -> DataError:
    return DataError(f"{label} has {extent}, more than the {most:,} that are read; make it smaller first")


def _damaged(label: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{label} cannot be decoded: {reason}; it is damaged, cut short or of an unusual kind: "
                     f"save it again as PNG or JPEG")
