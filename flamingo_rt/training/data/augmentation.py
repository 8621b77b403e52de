"""Random changes of pictures in training (§A.2): a horizontal flip and colours. The paper gives no strengths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import PIL.Image
from PIL import ImageEnhance
from PIL.Image import Transpose

STRENGTH = 0.2  # brightness, contrast and saturation are multiplied by 0.8 to 1.2
HUE = 0.03  # turns of the colour wheel, to either side: red stays red


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
        """The changed picture, 8-bit RGB as ``picture`` is, and of the same size."""
        if self.flip:
            picture = picture.transpose(Transpose.FLIP_LEFT_RIGHT)
        for enhance, factor in ((ImageEnhance.Brightness, self.brightness), (ImageEnhance.Contrast, self.contrast),
                                (ImageEnhance.Color, self.saturation)):
            if factor != 1.0:
                picture = enhance(picture).enhance(factor)
        shift = round(256 * self.hue)
        if shift:
            hue, saturation, value = picture.convert("HSV").split()
            turned = hue.point([(level + shift) % 256 for level in range(256)])
            picture = PIL.Image.merge("HSV", (turned, saturation, value)).convert("RGB")
        return picture
