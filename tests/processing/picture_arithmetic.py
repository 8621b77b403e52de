"""Colours of raw samples, by the formulas of the formats' specifications; and a picture with its expected colours."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import PIL.Image

HEIGHT, WIDTH = 5, 7  # odd, so that rows are padded and passes incomplete


@dataclass(frozen=True)
class Case:
    """A picture file and its expected content: uint8 [H, W, 3] to within ``tolerance``, or the words of its refusal."""

    container: str
    mode: str
    depth: str
    about: str
    content: bytes
    expected: np.ndarray | str
    tolerance: int = 0

    @property
    def name(self) -> str:
        return " ".join(filter(None, [self.container, self.mode, self.depth, self.about]))


def samples(bits: int, channels: int = 0, seed: int = 0) -> np.ndarray:
    """Samples [H, W] or [H, W, C] over the whole range of ``bits``, both ends among them."""
    shape = (HEIGHT, WIDTH, channels) if channels else (HEIGHT, WIDTH)
    values = np.random.default_rng(seed).integers(0, 2**bits, shape, dtype=np.int64)
    values[0, 0], values[0, 1] = 0, 2**bits - 1
    return values


def shown(values: np.ndarray, white: float, alpha: np.ndarray | None = None) -> np.ndarray:
    """Greys [H, W] or colours [H, W, 3] from 0 to ``white`` over white, alpha [H, W] from 0 to 1: uint8 [H, W, 3]."""
    colours = np.asarray(values, np.float64) / white
    colours = np.stack([colours] * 3, -1) if colours.ndim == 2 else colours
    opaque = 1.0 if alpha is None else np.asarray(alpha)[..., None]
    return np.rint(255 * (colours * opaque + 1 - opaque)).clip(0, 255).astype(np.uint8)


def lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """CIE 15 and IEC 61966-2-1: L*a*b* of D50, adapted to sRGB's D65 by Bradford's matrices."""
    fy = (lab[..., 0] + 16) / 116
    f = np.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.96422, 1.0, 0.82521]
    to_rgb = np.array([[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540],
                       [0.0719453, -0.2289914, 1.4052427]])  # from XYZ at D50
    linear = (xyz @ to_rgb.T).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * encoded).astype(np.uint8)


def ycc_to_rgb(ycc: np.ndarray) -> np.ndarray:
    """ITU-R BT.601 with full range, as in JFIF and TIFF's default coefficients."""
    y, cb, cr = (ycc[..., band].astype(np.float64) for band in range(3))
    cb, cr = cb - 128, cr - 128
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)
    return np.rint(rgb).clip(0, 255).astype(np.uint8)


def encoded(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def coded(array: np.ndarray, kind: str, **options: object) -> bytes:
    return encoded(PIL.Image.fromarray(array), kind, **options)
