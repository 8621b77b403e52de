"""See the package."""

from enum import Enum

from . import functional


class InterpolationMode(Enum):
    """Stand-in for the enumeration, which default arguments use."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


class Absent:
    """Stand-in for every transform; refuses to be made."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise RuntimeError("this is a stand-in for torchvision without its transforms")


CenterCrop = ColorJitter = Compose = Grayscale = Normalize = RandomResizedCrop = Resize = ToTensor = Absent

__all__ = [
    "CenterCrop", "ColorJitter", "Compose", "Grayscale", "InterpolationMode", "Normalize", "RandomResizedCrop",
    "Resize", "ToTensor", "functional",
]
