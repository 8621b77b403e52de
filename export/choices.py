"""What can be asked of quantization: names, sizes and limits, for the command line too, which has them without numpy or
torch. The names of all schemes are `flamingo_rt.bundle.QUANTIZATIONS`."""

from __future__ import annotations

from dataclasses import dataclass

ROUNDINGS = ("gptq", "nearest")  # of 4-bit matrices; the first is the default
BLOCKS = (32, 64, 128, 256)  # numbers of a 4-bit matrix that share a scale
DEFAULT_BLOCK = 256
WITHOUT_4_BITS = ("int8", "fp8")  # schemes
# By lowering; the mildest first.
SCHEMES_OF = {
    "ort": ("int8", "mixed", "int4"), "tensorrt": ("int8", "fp8", "mixed", "int4"), "tensorrt-classic": ("int8",),
}
# TensorRT's blocks end at 128.
BLOCKS_OF = {"ort": BLOCKS, "tensorrt": (32, 64, 128)}


@dataclass(frozen=True)
class Limits:
    """What is accepted: the least cosine of each graph on its worst prompt, the largest share of changed tokens."""

    cosine: float
    changed: float


# Beyond what was seen of the packaged model and of random ones; a wrong matrix is far below.
LIMITS = {
    "int8": Limits(0.99, 0.1), "fp8": Limits(0.99, 0.1), "mixed": Limits(0.97, 0.15), "int4": Limits(0.95, 0.2),
}
