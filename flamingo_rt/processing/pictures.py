"""From any picture source to an upright 8-bit RGB picture, or a `DataError` that says why not."""

from __future__ import annotations

import io
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import BinaryIO

import numpy as np
import PIL.Image
from PIL.Image import Transpose

from flamingo_rt.errors import DataError
from flamingo_rt.processing.arrays import host_array
from flamingo_rt.processing.input_files import open_file
from flamingo_rt.processing.picture_samples import settle, stated_samples, unread_kind, unreadable
from flamingo_rt.processing.picture_strips import is_plain, rgb_over_white
from flamingo_rt.processing.shared_context import SharedContext
from flamingo_rt.processing.visuals import Channels, PictureSource, is_array, source_label

MAX_PIXELS = 100_000_000
# In bytes a pixel, these decoders hold up to 17, 20 and 25, the others 13 (docs/pictures.md): at most 1.3 GB.
FEWER_PIXELS = {"WEBP": 60_000_000, "AVIF": 60_000_000, "JPEG2000": 40_000_000}
LARGE_PIXELS = 40_000_000  # above: decoded one at a time, however many threads read pictures

# Only formats that begin with a signature and decode in this process: EPS, for one, would start Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")

ORIENTATION_TAG = 0x0112
UPRIGHT = {
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


# What `settle` and `stated_samples` look at is not known any more once Pillow has decoded a picture of these.
REREAD = ("PNG", "GIF", "TIFF", "JPEG2000")
HOLD_THEIR_DECODER = ("WEBP", "AVIF")  # as long as they live: twice the picture's memory

_ONE_LARGE = threading.Lock()
_QUIET = SharedContext(_ignored_warnings)
NO_WARNINGS = _QUIET  # animations are read by Pillow too
_NO_STDERR = SharedContext(_discarded_stderr)


def open_picture(source: PictureSource, channels: Channels = "RGB") -> PIL.Image.Image:
    """Read a picture: its first frame, turned upright by its EXIF orientation, over white where it is transparent.

    ``source`` is a path, the bytes of a picture file, a Pillow image, or an array of any library, uint8 [H, W, 3] in
    the order of ``channels`` or [H, W] grey; one in device memory is copied by `host_array`. Returns an RGB image of at
    most `MAX_PIXELS` pixels that shares no memory with the source. Raises `DataError` for anything else; the size is
    checked before anything is decoded. docs/pictures.md says what is read, and how.
    """
    label = source_label(source)
    if channels != "RGB" and not is_array(source):
        raise DataError(f"{label} is no array: {channels} is the order of an array's channels; leave it out")
    if isinstance(source, (str, os.PathLike)):
        with open_file(source) as file:
            return _read(file, label)
    if isinstance(source, bytes):
        if not source:
            raise DataError(f"{label}: no picture in 0 bytes; was the file read to its end before?")
        return _read(io.BytesIO(source), label)
    if isinstance(source, PIL.Image.Image):
        with _QUIET:
            return _of_pillow(source, label)
    if is_array(source):
        return _from_array(host_array(source, label), channels, label)
    raise DataError(
        f"{label} is not a picture; give a path, the bytes of a picture file, a Pillow image or a uint8 array"
    )


def _read(file: BinaryIO, label: str) -> PIL.Image.Image:
    with _QUIET:
        PIL.Image.init()
        with _opened(file, label) as image:
            _check_size(image, label)
            with _ONE_LARGE if image.width * image.height > LARGE_PIXELS else nullcontext():
                try:
                    settle(image, lambda: _opened(file, label))
                except DataError:
                    raise
                except Exception as error:
                    raise _damaged(label, error) from error
                picture = _to_rgb(image, label)
                return picture.copy() if picture is image and image.format in HOLD_THEIR_DECODER else picture


def _opened(file: BinaryIO, label: str) -> PIL.Image.Image:
    """A picture file with its header read. Raises `DataError` for what is none, of another format or of a kind that
    Pillow does not read."""
    known = [name for name in FORMATS if name in PIL.Image.OPEN]
    file.seek(0)
    try:
        return PIL.Image.open(file, formats=known)
    except PIL.Image.DecompressionBombError as error:  # Pillow's own limit, met before ours can be
        count = re.search(r"\d+", str(error))
        raise _too_large(label, f"{int(count[0]):,} pixels" if count else "too many pixels") from error
    except PIL.UnidentifiedImageError as error:
        kind = unread_kind(file)
        if kind:
            raise unreadable(label, kind) from error
        file.seek(0)
        raise DataError(
            f"{label} is not a picture this can read, or its header is damaged: it begins with {file.read(12)!r}; "
            f"give one of {', '.join(known)}"
        ) from error
    except Exception as error:  # decoders raise anything at all for damaged bytes
        raise _damaged(label, error) from error


def _of_pillow(image: PIL.Image.Image, label: str) -> PIL.Image.Image:
    """The picture in a Pillow image, which is left as it is, but that Pillow decodes it."""
    file = getattr(image, "fp", None)
    if image.format in REREAD and getattr(image, "tile", None) and file is not None and image.tell() == 0:
        try:
            place = file.tell()
            file.seek(0)
            content = file.read()
            file.seek(place)
        except (OSError, ValueError) as error:  # ValueError: closed
            raise _damaged(label, error) from error
        return _read(io.BytesIO(content), label)
    _check_size(image, label)
    picture = _to_rgb(image, label)
    return picture.copy() if picture is image else picture


def _from_array(array: np.ndarray, channels: Channels, label: str) -> PIL.Image.Image:
    shape_fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not shape_fits:
        raise DataError(
            f"{label} is not a picture; give uint8 values, shape [H, W, 3] (RGB, or BGR with channels='BGR') or [H, W] "
            "(grey), or PixelValues of what is preprocessed already"
        )
    _check_extent(array.shape[1], array.shape[0], MAX_PIXELS, label)
    if array.ndim == 2:
        return PIL.Image.fromarray(np.ascontiguousarray(array)).convert("RGB")
    return PIL.Image.fromarray(np.ascontiguousarray(array if channels == "RGB" else array[:, :, ::-1]))


def _to_rgb(image: PIL.Image.Image, label: str) -> PIL.Image.Image:
    """Decode ``image`` and make it upright 8-bit RGB: the image itself if it is that already.

    Raises `DataError`, also for what Pillow's decoders raise.
    """
    try:
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


def _check_size(image: PIL.Image.Image, label: str) -> None:
    _check_extent(image.width, image.height, FEWER_PIXELS.get(image.format or "", MAX_PIXELS), label)


def _check_extent(width: int, height: int, most: int, label: str) -> None:
    if width < 1 or height < 1:
        raise DataError(f"{label} is {width} x {height} pixels: there is nothing in it; give another picture")
    if width * height > min(most, MAX_PIXELS):
        raise _too_large(label, f"{width:,} x {height:,} pixels", min(most, MAX_PIXELS))


def _too_large(label: str, extent: str, most: int = MAX_PIXELS) -> DataError:
    return DataError(f"{label} has {extent}, more than the {most:,} that are read; make it smaller first")


def _damaged(label: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{label} cannot be decoded: {reason}; it is damaged, cut short or of an unusual kind: "
                     f"save it again as PNG or JPEG")
