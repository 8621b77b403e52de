"""Pictures of the formats that only their encoders can write, each with the RGB that it must become."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import PIL.Image
from picture_arithmetic import Case, coded, encoded, samples, shown, ycc_to_rgb

# JPEG 2000 files of `samples`, lossless, which Pillow cannot write: BITSbitCHANNELS.jp2, made with imagecodecs 2026.3.6
# (jpeg2k_encode(..., level=0, reversible=True, bitspersample=BITS, codecformat="jp2", mct=False, resolutions=1)).
FIXTURES = Path(__file__).parents[1] / "fixtures" / "pictures"


def smooth(channels: int = 3) -> np.ndarray:
    """uint8 [32, 48, C]: a slow gradient, which lossy codecs keep to within little."""
    down, across = np.mgrid[0:32, 0:48]
    bands = [40 + 4 * down, 30 + 4 * across, 200 - 2 * down - across, 60 + 3 * down + 2 * across]
    return np.stack(bands[:channels], -1).astype(np.uint8)


def jpegs() -> Iterator[Case]:
    rgb, options = smooth(), {"quality": 97}
    for progressive in (False, True):
        about = "progressive" if progressive else ""
        yield Case("JPEG", "grey", "8", about,
                   coded(rgb[..., 0], "JPEG", progressive=progressive, **options),
                   shown(rgb[..., 0], 255), 4)
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            yield Case("JPEG", f"YCbCr {subsampling}", "8", about,
                       coded(rgb, "JPEG", subsampling=subsampling, progressive=progressive, **options), rgb, 8)
    for about, inks in (("gradient", smooth(4)), ("flat", np.broadcast_to(np.uint8([90, 140, 120, 60]), (32, 48, 4)))):
        bands = [PIL.Image.fromarray(inks[..., band].copy()) for band in range(4)]
        content = encoded(PIL.Image.merge("CMYK", bands), "JPEG", **options)
        stored = 255 - inks.astype(float)  # Adobe's files hold CMYK upside down
        yield Case("JPEG", "CMYK (Adobe)", "8", about, content, shown(stored[..., :3] * stored[..., 3:] / 255, 255), 6)
    at = content.index(b"Adobe\0d")
    ycck = content[: at + 11] + b"\2" + content[at + 12 :]  # the transform: the same samples as YCCK
    cmy = 255 - ycc_to_rgb(stored[..., :3]).astype(float)
    yield Case("JPEG", "YCCK (Adobe)", "8", "", ycck, shown(cmy * stored[..., 3:] / 255, 255), 4)
    ycc = np.broadcast_to(np.array([150, 120, 140], np.uint8), (16, 16, 3))
    bands = [PIL.Image.new("L", (16, 16), int(value)) for value in ycc[0, 0]]
    plain = encoded(PIL.Image.merge("YCbCr", bands), "JPEG", **options)
    marker = b"\xff\xee\0\x0eAdobe\0d\0\0\0\0\0"
    yield Case("JPEG", "RGB (Adobe)", "8", "", plain[:2] + marker + plain[plain.index(b"\xff\xdb") :],
               np.ascontiguousarray(ycc), 2)
    precision = plain.index(b"\xff\xc0") + 4
    yield Case("JPEG", "YCbCr 4:2:0", "12", "", plain[:precision] + b"\x0c" + plain[precision + 1 :], "12 bits")


def coded_tiffs() -> Iterator[Case]:
    """Compressions of TIFF, all decoded by libtiff; the samples in them are those of the other TIFFs."""
    rgb, grey, bilevel = samples(8, 3).astype(np.uint8), samples(16).astype(np.uint16), samples(1).astype(bool)
    for compression in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "tiff_deflate"):
        yield Case("TIFF", "RGB", "8", compression, coded(rgb, "TIFF", compression=compression), rgb)
        yield Case("TIFF", "BlackIsZero", "16", compression, coded(grey, "TIFF", compression=compression),
                   shown(grey, 65535))
    for compression in ("group3", "group4", "tiff_ccitt", "packbits"):
        yield Case("TIFF", "BlackIsZero", "1", compression, coded(bilevel, "TIFF", compression=compression),
                   shown(bilevel, 1))
    yield Case("TIFF", "YCbCr", "8", "jpeg", coded(smooth(), "TIFF", compression="jpeg", quality=97), smooth(), 8)


def webps() -> Iterator[Case]:
    rgb, rgba = samples(8, 3).astype(np.uint8), samples(8, 4).astype(np.uint8)
    over = shown(rgba[..., :3], 255, rgba[..., 3] / 255)
    yield Case("WebP", "RGB lossless", "8", "", coded(rgb, "WEBP", lossless=True), rgb)
    yield Case("WebP", "RGBA lossless", "8", "", coded(rgba, "WEBP", lossless=True, exact=True), over, 1)
    yield Case("WebP", "YCbCr lossy", "8", "", coded(smooth(), "WEBP", quality=100), smooth(), 8)
    alpha = smooth(4)
    yield Case("WebP", "YCbCr lossy+alpha", "8", "", coded(alpha, "WEBP", quality=100),
               shown(alpha[..., :3], 255, alpha[..., 3] / 255), 8)
    frames = [PIL.Image.fromarray(rgba), PIL.Image.fromarray(rgba[::-1].copy())]
    yield Case("WebP", "RGBA lossless", "8", "animated",
               encoded(frames[0], "WEBP", lossless=True, exact=True, save_all=True, append_images=frames[1:]), over, 1)


def jpeg2000s() -> Iterator[Case]:
    for bits, channels in product((1, 2, 4, 7, 8, 10, 12, 16), (1, 3)):
        file = FIXTURES / f"{bits}bit{channels}.jp2"
        values = samples(bits, channels if channels > 1 else 0)
        expected = "components of" if channels == 3 and bits > 8 else shown(values, 2**bits - 1)
        yield Case("JPEG2000", "grey" if channels == 1 else "RGB", f"{bits}", "JP2", file.read_bytes(), expected)
        content = file.read_bytes()
        yield Case("JPEG2000", "grey" if channels == 1 else "RGB", f"{bits}", "codestream",
                   content[content.index(b"\xff\x4f\xff\x51") :], expected)
    values = samples(8, 2)
    image = PIL.Image.merge("LA", [PIL.Image.fromarray(values[..., band].astype(np.uint8)) for band in (0, 1)])
    yield Case("JPEG2000", "grey+alpha", "8", "", encoded(image, "JPEG2000"),
               shown(values[..., 0], 255, values[..., 1] / 255), 1)
    rgba = samples(8, 4)
    yield Case("JPEG2000", "RGBA", "8", "", coded(rgba.astype(np.uint8), "JPEG2000"),
               shown(rgba[..., :3], 255, rgba[..., 3] / 255), 1)
    grey = coded(samples(8).astype(np.uint8), "JPEG2000")
    colours = b"\0\2\3\7\7\7" + bytes([10, 20, 30, 200, 100, 0])
    palette = struct.pack(">I4s", 8 + len(colours), b"pclr") + colours
    at = grey.index(b"jp2h") - 4
    longer = struct.pack(">I", struct.unpack_from(">I", grey, at)[0] + len(palette))
    end = at + struct.unpack_from(">I", grey, at)[0]
    yield Case("JPEG2000", "palette", "8", "", grey[:at] + longer + grey[at + 4 : end] + palette + grey[end:],
               "with a palette")


def avifs() -> Iterator[Case]:
    import cv2

    rgb, alpha = smooth(), smooth(4)
    yield Case("AVIF", "RGB", "8", "4:4:4", coded(rgb, "AVIF", quality=100, subsampling="4:4:4"), rgb, 3)
    yield Case("AVIF", "RGB", "8", "4:2:0", coded(rgb, "AVIF", quality=100), rgb, 8)
    yield Case("AVIF", "grey", "8", "", coded(rgb[..., 0], "AVIF", quality=100), shown(rgb[..., 0], 255), 3)
    for premultiplied in (False, True):
        yield Case("AVIF", "RGBA", "8", "premultiplied" if premultiplied else "",
                   coded(alpha, "AVIF", quality=100, subsampling="4:4:4", alpha_premultiplied=premultiplied),
                   shown(alpha[..., :3], 255, alpha[..., 3] / 255), 4)
    for bits in (10, 12):
        white = 2**bits - 1
        deep = np.rint(rgb.astype(float) * white / 255).astype(np.uint16)
        options = [cv2.IMWRITE_AVIF_DEPTH, bits, cv2.IMWRITE_AVIF_QUALITY, 100]
        done, content = cv2.imencode(".avif", deep[..., ::-1], options)
        assert done
        yield Case("AVIF", "RGB", f"{bits}", "", content.tobytes(), rgb, 8)
