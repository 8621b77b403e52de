"""The meaning of a picture file's samples, where Pillow does not report it or reports it wrongly."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import numpy as np
import PIL.Image
import PIL.TiffImagePlugin
from PIL.ImageFile import ImageFile

from flamingo_rt.errors import DataError
from flamingo_rt.processing.picture_strips import UINT32_WHITE, Samples, boxes

# TIFF tags.
BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC, PLANAR, EXTRA_SAMPLES, SAMPLE_FORMAT = 258, 259, 262, 284, 338, 339
UNSIGNED, SIGNED = 1, 2  # TIFF's SampleFormat
SAMPLE_KINDS = {1: "unsigned", 2: "signed", 3: "float", 5: "complex", 6: "complex float"}
PHOTOMETRICS = {0: "WhiteIsZero", 1: "BlackIsZero", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr",
                8: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "raw sensor", 32844: "LogL", 32845: "LogLuv"}
BMP_BITS_AT = 28  # bytes from the beginning of the file
JP2_PALETTE = b"pclr"
CODESTREAM = b"\xff\x4f\xff\x51"  # JPEG 2000: start of codestream, then the SIZ marker
JP2_HEADER_BYTES = 2**20  # the codestream begins within; boxes before it are a few hundred bytes, a profile some more


def stated_samples(image: PIL.Image.Image, label: str) -> Samples:
    """Read the meaning of the samples from the file of a picture that is not decoded yet.

    Raises `DataError`, with the kind's name, for a kind that Pillow would silently decode to wrong colours.
    """
    readers = {"TIFF": _tiff, "PPM": _netpbm, "PNG": _png, "BMP": _bmp, "GIF": _gif, "JPEG2000": _jpeg2000}
    reader = readers.get(image.format or "")
    return reader(image, label) if reader is not None and isinstance(image, ImageFile) else Samples()


def _tiff(image: ImageFile, label: str) -> Samples:
    tags = getattr(image, "tag_v2", {})
    bits, formats = tags.get(BITS_PER_SAMPLE, (1,)), tags.get(SAMPLE_FORMAT, (UNSIGNED,))
    deep_grey = image.mode in ("I", "F") or image.mode.startswith("I;16")
    downwards = deep_grey and tags.get(PHOTOMETRIC, 0) == 0  # Pillow inverts greys of at most 8 bits itself
    if tags.get(PLANAR) == 2 and tags.get(COMPRESSION, 1) == 1 and ((max(bits) > 8 and not deep_grey) or
                                                                    set(tags.get(EXTRA_SAMPLES, ())) & {0, 1}):
        raise unreadable(label, f"a TIFF of {max(bits)}-bit samples in separate planes, not compressed")
    if SIGNED in formats and max(bits) < 32:  # 32 bits: Pillow itself writes mode I so
        raise unreadable(label, f"a TIFF of signed {max(bits)}-bit samples, which does not say which value is white")
    if image.mode.startswith("I;16"):
        return Samples((2 ** bits[0] - 1,), downwards)
    if image.mode == "I" and SIGNED not in formats:
        return Samples((UINT32_WHITE if bits[0] == 32 else 2 ** bits[0] - 1,), downwards)
    return Samples((), downwards)


def _netpbm(image: ImageFile, label: str) -> Samples:
    if image.mode == "F":  # PFM: its scale factor is the value of white
        return Samples((image.info.get("scale", 1.0),))
    return Samples((65535,)) if image.mode == "I" else Samples()  # Pillow scales every other maximum to 65535


def _png(image: ImageFile, label: str) -> Samples:
    colour = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(colour, tuple) and max(colour) > 255 and not image.tile:
        raise DataError(f"{label} is a PNG of 16 bits a colour that Pillow has already decoded to 8 bits, so its "
                        f"transparent colour {colour} can no longer be found: give the file itself")
    return Samples((65535,)) if image.mode == "I" else Samples()  # Pillow before 11: 16-bit greys


def _bmp(image: ImageFile, label: str) -> Samples:
    file = getattr(image, "fp", None)
    if image.tile and file is not None and image.tile[0][0] == "raw" and image.mode in ("1", "L"):
        header = _at(file, 0, BMP_BITS_AT + 2)
        core = struct.unpack_from("<I", header, 14)[0] == 12  # OS/2: the bits stand 4 bytes earlier
        bits = struct.unpack_from("<H", header, BMP_BITS_AT - 4 if core else BMP_BITS_AT)[0]
        if bits != (1 if image.mode == "1" else 8):  # Pillow then takes a grey palette for samples of 1 or 8 bits
            raise unreadable(label, f"a BMP of {bits} bits with a palette of {2 if image.mode == '1' else 'few'} greys")
    return Samples()


def _gif(image: ImageFile, label: str) -> Samples:
    frame = image.tile[0][1] if image.tile else None
    if frame is None or frame == (0, 0, *image.size) or "transparency" in image.info:
        return Samples()
    index, palette = image.info.get("background"), getattr(image, "global_palette", None)
    if index is None:  # no table of colours for the screen: nothing is drawn there
        colour = (255, 255, 255)
    elif palette is None:  # Pillow's sign for a ramp of greys
        colour = (index, index, index)
    else:
        colour = tuple(palette.palette[3 * index : 3 * index + 3]) or (255, 255, 255)
    return Samples(outside=(frame, colour))


def _jpeg2000(image: ImageFile, label: str) -> Samples:
    file = getattr(image, "fp", None)
    if not image.tile or file is None:  # decoded already: its depths are no longer known
        return Samples()
    head = _at(file, 0, JP2_HEADER_BYTES)
    start = _codestream_start(head)
    if head[start : start + 4] != CODESTREAM or len(head) < start + 44:
        raise unreadable(label, "a JPEG 2000 file without a codestream in its first MiB")
    right, bottom, left, top, *tile, _, _, count = struct.unpack_from(">IIIIIIIIH", head, start + 8)
    if (right - left, bottom - top) != image.size:
        raise unreadable(label, f"a JPEG 2000 file whose header says {image.width} x {image.height} pixels, its "
                                f"codestream {right - left} x {bottom - top}")
    components = [head[start + 42 + 3 * band :][:3] for band in range(min(count, 4))]
    depths = [1 + (precision & 0x7F) for precision, _, _ in components]
    if any(side % step for _, across, down in components
           for side, step in ((image.width, across), (tile[0], across), (image.height, down), (tile[1], down)) if step):
        raise unreadable(label, "a JPEG 2000 file whose size is not a multiple of its subsampling")
    if JP2_PALETTE in head[:start]:
        raise unreadable(label, "a JPEG 2000 file with a palette")
    if image.mode == "I;16":
        return Samples(((2 ** depths[0] - 1) << max(0, 16 - depths[0]),))  # Pillow shifts the bits up to 16
    if max(depths) > 8:  # Pillow rounds in 8 bits: white becomes black
        raise unreadable(label, f"a JPEG 2000 file of {count} components of {max(depths)} bits")
    if min(depths) >= 8:
        return Samples()
    return Samples(tuple((2 ** min(depth, 8) - 1) << max(0, 8 - depth) for depth in depths))  # or up to 8


def _codestream_start(head: bytes) -> int:
    """Offset of the codestream in a JPEG 2000 file, after any boxes before it."""
    if head.startswith(CODESTREAM):
        return 0
    at = 0
    while len(head) >= at + 16:
        length, kind, extended = struct.unpack_from(">I4sQ", head, at)
        if kind == b"jp2c":
            return at + (16 if length == 1 else 8)
        length = extended if length == 1 else length
        if length < 8:  # 0: the last box, and it was no codestream
            break
        at += length
    return len(head)


def settle(image: ImageFile, reopen: Callable[[], ImageFile]) -> None:
    """Correct, in a picture file that is opened and not decoded yet, what Pillow would decode or convert wrongly.
    ``reopen`` opens the file again."""
    if image.format == "PNG":
        _settle_transparency(image, reopen)
    elif image.format == "GIF" and image.mode == "L":
        image.palette = None  # the frame's own table is a ramp of greys; Pillow would apply the screen's
    elif image.format == "TIFF" and image.tile and image.tile[0][0] == "libtiff":  # decodes to the machine's byte order
        native = {"F;32BF": "F;32NF", "F;32F": "F;32NF", "I;32BS": "I;32NS", "I;32S": "I;32NS"}
        for index, tile in enumerate(image.tile):
            mode, *others = cast("tuple[Any, ...]", tile[3])
            image.tile[index] = _with_args(tile, (native.get(mode, mode), *others))


def _settle_transparency(image: ImageFile, reopen: Callable[[], ImageFile]) -> None:
    """Convert the transparent value of a PNG to 8 bits: the file states it at its own depth, Pillow compares it with
    8-bit samples. 16-bit colours are decoded twice, to their high and to their low bytes."""
    transparent, depth = image.info.get("transparency"), str(image.tile[0][3]) if image.tile else ""
    if image.mode == "L" and isinstance(transparent, int):
        bits = {"L;2": 2, "L;4": 4}.get(depth, 8)
        image.info["transparency"] = (transparent & (2**bits - 1)) * 255 // (2**bits - 1)
    elif image.mode == "RGB" and isinstance(transparent, tuple):
        if depth == "RGB;16B":
            image.putalpha(_opaque(image, reopen(), transparent))
            del image.info["transparency"]
        else:
            image.info["transparency"] = tuple(value & 255 for value in transparent)


def _opaque(high: ImageFile, low: ImageFile, transparent: tuple[int, ...]) -> PIL.Image.Image:
    """Alpha, mode L, of a PNG picture of 16-bit colours: 0 where all three samples are those of ``transparent``.
    ``low`` is the file opened a second time."""
    low.tile = [_with_args(low.tile[0], "RGB;16L")]  # little-endian takes the second byte of each sample
    alpha = PIL.Image.new("L", high.size)
    for box in boxes(high.size):
        same = np.ones((box[3] - box[1], box[2] - box[0]), bool)
        for image, shift in ((high, 8), (low, 0)):
            same &= (np.asarray(image.crop(box)) == [value >> shift & 255 for value in transparent]).all(-1)
        alpha.paste(PIL.Image.fromarray(np.where(same, 0, 255).astype(np.uint8)), box[:2])
    return alpha


def _with_args(tile: Any, args: Any) -> Any:
    """An entry of `ImageFile.tile` with other arguments for its decoder; some Pillow versions have plain tuples."""
    return tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)


def _at(file: BinaryIO, offset: int, count: int) -> bytes:
    place = file.tell()
    file.seek(offset)
    content = file.read(count)
    file.seek(place)
    return content


def unreadable(label: str, kind: str) -> DataError:
    """The error for a kind of picture whose colours cannot be determined."""
    return DataError(f"{label} is {kind}: it is not read; save it as an 8-bit PNG first")


def unread_kind(file: BinaryIO) -> str | None:
    """The kind of a file that begins like a picture and that Pillow does not open: a name for messages, or None."""
    head = _at(file, 0, 4)
    if head[:2] in (b"II", b"MM"):
        return _tiff_kind(file)
    if head[:2] == b"\xff\xd8":
        return "a JPEG of a kind that Pillow does not know, such as 12 bits or lossless, or one with a damaged header"
    return {b"PF": "a colour PFM", b"P7": "a PAM"}.get(head[:2])


def _tiff_kind(file: BinaryIO) -> str | None:
    try:
        file.seek(0)
        directory = PIL.TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(directory.next)
        directory.load(file)
        bits, extra = directory.get(BITS_PER_SAMPLE, (1,)), directory.get(EXTRA_SAMPLES, ())
        kind = SAMPLE_KINDS.get(directory.get(SAMPLE_FORMAT, (UNSIGNED,))[0], "unknown")
        photometric = directory[PHOTOMETRIC]
    except Exception:  # a damaged directory has no kind
        return None
    beside = f" with {len(extra)} beside the colours" if extra else ""
    return (f"a TIFF of {len(bits)} {kind} samples of {'/'.join(map(str, dict.fromkeys(bits)))} bits{beside}, "
            f"photometric {PHOTOMETRICS.get(photometric, photometric)}, which is a combination Pillow does not know")
