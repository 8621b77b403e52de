"""See the package."""

from torch import nn


class FrozenBatchNorm2d(nn.Module):
    """Tested for with isinstance, never made."""
