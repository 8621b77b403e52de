"""See the package."""

from enum import Enum

from . import functional


class InterpolationMode(Enum):
    """Used in default arguments."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


class Absent:
    """Any transform: refuses to be made."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise RuntimeError("this is a stand-in for torchvision without its transforms")


CenterCrop = ColorJitter = Compose = Grayscale = Normalize = RandomResizedCrop = Resize = ToTensor = Absent

__all__ = [
    "CenterCrop", "ColorJitter", "Compose", "Grayscale", "InterpolationMode", "Normalize", "RandomResizedCrop",
    "Resize", "ToTensor", "functional",
]
