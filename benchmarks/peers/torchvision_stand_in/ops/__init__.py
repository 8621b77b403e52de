"""See the package."""

from . import misc

__all__ = ["misc"]
