"""The names that open_flamingo and open_clip import from torchvision, without torchvision.

The peer is fed arrays, so nothing here is ever called; it only has to be importable.
"""

from . import ops, transforms

__all__ = ["ops", "transforms"]
