"""From any picture source to an upright 8-bit RGB picture, or a `DataError` that says why not."""

from __future__ import annotations

import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import BinaryIO

import numpy as np
import PIL.Image
from PIL.Image import Transpose

from flamingo_rt.errors import DataError
from flamingo_rt.processing.arrays import host_array
from flamingo_rt.processing.files import open_file
from flamingo_rt.processing.media import PictureSource, is_array, source_label
from flamingo_rt.processing.shared_context import SharedContext

MAX_PIXELS = 100_000_000

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


_QUIET = SharedContext(_ignored_warnings)
NO_WARNINGS = _QUIET  # animations are read by Pillow too
_NO_STDERR = SharedContext(_discarded_stderr)


def open_picture(source: PictureSource) -> PIL.Image.Image:
    """Read a picture: its first frame, turned upright by its EXIF orientation, over white where it is transparent.

    ``source`` is a path, the bytes of a picture file, a Pillow image, or an array of any library, uint8 [H, W, 3] RGB
    or [H, W] grey; one in device memory is copied by `host_array`. Returns a new RGB image of at most `MAX_PIXELS`
    pixels. Deeper greys are scaled to 8 bits, see `_eight_bits`. Raises `DataError` for anything else; the size is
    checked before anything is decoded.
    """
    label = source_label(source)
    if isinstance(source, (str, os.PathLike)):
        with open_file(source) as file:
            return _read(file, label)
    if isinstance(source, bytes):
        if not source:
            raise DataError(f"{label}: no picture in 0 bytes; was the file read to its end before?")
        return _read(io.BytesIO(source), label)
    if isinstance(source, PIL.Image.Image):
        with _QUIET:
            return _to_rgb(source, label)
    if is_array(source):
        return _from_array(host_array(source, label), label)
    raise DataError(
        f"{label} is not a picture; give a path, the bytes of a picture file, a Pillow image or a uint8 array"
    )


def _read(file: BinaryIO, label: str) -> PIL.Image.Image:
    with _QUIET:
        PIL.Image.init()
        known = [name for name in FORMATS if name in PIL.Image.OPEN]
        try:
            image = PIL.Image.open(file, formats=known)
        except PIL.Image.DecompressionBombError as error:  # Pillow's own limit, met before ours can be
            count = re.search(r"\d+", str(error))
            raise _too_large(label, f"{int(count[0]):,} pixels" if count else "too many pixels") from error
        except PIL.UnidentifiedImageError as error:
            file.seek(0)
            raise DataError(
                f"{label} is not a picture this can read, or its header is damaged: it begins with {file.read(12)!r}; "
                f"give one of {', '.join(known)}"
            ) from error
        except Exception as error:  # decoders raise anything at all for damaged bytes
            raise _damaged(label, error) from error
        with image:
            return _to_rgb(image, label)


def _from_array(array: np.ndarray, label: str) -> PIL.Image.Image:
    shape_fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not shape_fits:
        raise DataError(
            f"{label} is not a picture; give uint8 values, shape [H, W, 3] (RGB) or [H, W] (grey), or PixelValues of "
            "what is preprocessed already"
        )
    _check_size(array.shape[1], array.shape[0], label)
    return PIL.Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _to_rgb(image: PIL.Image.Image, label: str) -> PIL.Image.Image:
    """Decode ``image`` and make it 8-bit RGB. Raises `DataError`, also for what its lazy decoder raises."""
    _check_size(image.width, image.height, label)
    try:
        # Only libtiff prints, so that other threads lose their stderr for no other format.
        with _NO_STDERR if image.format == "TIFF" else nullcontext():
            image.load()
        turn = UPRIGHT.get(_orientation(image))  # after loading: Pillow turns TIFF pictures itself while it loads
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            image = _eight_bits(image, label)
        if image.mode == "La":  # premultiplied; Pillow converts it to LA only
            image = image.convert("LA")
        if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
        picture = image.convert("RGB")
        if turn is not None:
            picture = picture.transpose(turn)
    except DataError:
        raise
    except Exception as error:  # decoders raise anything at all for damaged bytes
        raise _damaged(label, error) from error
    picture.info = {}  # an orientation kept here would turn the picture again when it is next opened
    return picture


def _orientation(image: PIL.Image.Image) -> object:
    try:
        return image.getexif().get(ORIENTATION_TAG)
    except Exception:  # unreadable metadata does not make the picture unreadable
        return None


def _eight_bits(image: PIL.Image.Image, label: str) -> PIL.Image.Image:
    """Scale a grey picture of 12, 16 or 32 bits or of floats to 8 bits, linearly, its white to 255.

    White is known for 12 and 16 bits. Modes I and F do not say theirs, so it is the least of 1 (F only), 255
    and 65535 that holds every value. Raises `DataError` for values below 0, above 65535 or not finite.
    """
    values = np.asarray(image).astype(np.float64)  # [H, W]
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):  # written so that NaN fails it
        raise DataError(
            f"{label} has values from {low:g} to {high:g} (mode {image.mode}), and which of them is white is not "
            f"known; scale it to 8 bits first"
        )
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(258)  # TIFF's BitsPerSample
        white = 4095 if bits == (12,) else 65535
    elif image.format in ("PPM", "PNG"):  # Pillow gives these in mode I only when they have 16 bits
        white = 65535
    else:
        white = next(level for level in (1, 255, 65535) if high <= level and (level > 1 or image.mode == "F"))
    transparent = image.info.get("transparency")  # PNG: the one grey that is transparent
    if isinstance(transparent, int):
        values[values == transparent] = white
    return PIL.Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))


def _check_size(width: int, height: int, label: str) -> None:
    if width < 1 or height < 1:
        raise DataError(f"{label} is {width} x {height} pixels: there is nothing in it; give another picture")
    if width * height > MAX_PIXELS:
        raise _too_large(label, f"{width:,} x {height:,} pixels")


def _too_large(label: str, extent: str) -> DataError:
    return DataError(f"{label} has {extent}, more than the {MAX_PIXELS:,} that are read; make it smaller first")


def _damaged(label: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{label} cannot be decoded: {reason}; it is damaged, cut short or of an unusual kind: "
                     f"save it again as PNG or JPEG")
