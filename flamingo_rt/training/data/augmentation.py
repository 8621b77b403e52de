"""Random changes of pictures in training (§A.2): a horizontal flip and colours. The paper gives no strengths."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import PIL.Image
from PIL.Image import Transpose

STRENGTH = 0.2  # brightness, contrast and saturation are multiplied by 0.8 to 1.2
HUE = 0.03  # turns of the colour wheel, to either side: red stays red

# From RGB to brightness and two axes of colour (YIQ, FCC 1953).
TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


@dataclass(frozen=True)
class Augmentation:
    """One change, the same for all frames of a clip. ``brightness``, ``contrast``, ``saturation``: factors, 1 for no
    change; ``hue``: turns of the colour wheel."""

    flip: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Augmentation:
        """A change at random: one in two pictures is flipped."""
        brightness, contrast, saturation = 1 + rng.uniform(-STRENGTH, STRENGTH, 3)
        return cls(bool(rng.random() < 0.5), float(brightness), float(contrast), float(saturation),
                   float(rng.uniform(-HUE, HUE)))

    def __call__(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        """The changed picture, 8-bit RGB as ``picture`` is, and of the same size.

        All changes of colour are one linear map of each pixel's RGB, so that they are done in one pass: colours are
        turned and scaled around grey, then all is scaled, around the picture's mean grey for the contrast.
        """
        if self.flip:
            picture = picture.transpose(Transpose.FLIP_LEFT_RIGHT)
        colours = (self.brightness, self.contrast, self.saturation, self.hue)
        if colours == (1.0, 1.0, 1.0, 0.0):
            return picture
        angle = 2 * math.pi * self.hue
        turned = self.saturation * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        in_yiq = np.eye(3)
        in_yiq[1:, 1:] = turned
        matrix = self.brightness * self.contrast * (np.linalg.inv(TO_YIQ) @ in_yiq @ TO_YIQ)
        histogram = np.array(picture.convert("L").histogram())
        mean = histogram @ np.arange(256) / histogram.sum()
        offset = self.brightness * (1 - self.contrast) * mean
        return picture.convert("RGB", [float(value) for row in matrix for value in (*row, offset)])
