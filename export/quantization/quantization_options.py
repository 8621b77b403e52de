"""What can be asked of quantization, and which matrices get how many bits: names, block sizes, limits and schemes.

The command line reads them too, so nothing here needs numpy or torch. The names of all schemes are
`flamingo_rt.bundle.QUANTIZATIONS`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flamingo_rt.errors import UsageError

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


SMALLEST_BLOCK = 16  # that the operators take


@dataclass(frozen=True)
class Blocks:
    """How a matrix is stored: ``bits`` (4 or 8) a number, and ``block`` numbers a scale."""

    bits: int
    block: int

    def fitting(self, width: int) -> Blocks | None:
        """The same with the largest block, up to this one, that divides rows of ``width``; None if there is none."""
        block = self.block
        while block >= SMALLEST_BLOCK and width % block:
            block //= 2
        return Blocks(self.bits, block) if block >= SMALLEST_BLOCK else None

    def shapes(self, rows: int, width: int) -> tuple[tuple[int, int, int], tuple[int, int]]:
        """Shapes of the packed numbers (uint8) and of the scales (float32) of a matrix [rows, width]."""
        count = width // self.block
        return (rows, count, self.block * self.bits // 8), (rows, count)


@dataclass(frozen=True)
class Scheme:
    """Blocks of the language model's matrices by their kind; ``head`` is also the embedding's."""

    name: str
    attention: Blocks
    feed_forward: Blocks
    head: Blocks
    floating: bool = False  # numbers of 8 bits are floating-point, e4m3

    def with_block(self, block: int) -> Scheme:
        """The same with 4-bit blocks of another size."""
        def resized(blocks: Blocks) -> Blocks:
            return Blocks(blocks.bits, block) if blocks.bits == INT4.bits else blocks

        return replace(
            self, attention=resized(self.attention), feed_forward=resized(self.feed_forward), head=resized(self.head)
        )

    def kind_of(self, name: str) -> str:
        """The kind of the weight called ``name``: ``attention``, ``feed_forward`` or ``head``."""
        if ".ff." in name:
            return "feed_forward"
        return "head" if "language.head." in name or "language.embedding." in name else "attention"

    def blocks_of(self, name: str) -> Blocks:
        """Those of the weight called ``name``, before they are made to fit its width."""
        return getattr(self, self.kind_of(name))

    @property
    def bits(self) -> set[int]:
        """The bits that occur."""
        return {blocks.bits for blocks in (self.attention, self.feed_forward, self.head)}

    def described(self, fitted: Mapping[str, Collection[int]]) -> dict[str, dict[str, Any]]:
        """Each kind of matrix, as the manifest has it: its ``bits``, the ``block`` that is asked for, and ``fitted``,
        the sizes of block that its matrices have, some being too narrow for that one; none where all stayed dense."""
        return {
            kind: {"bits": blocks.bits, "block": blocks.block, "fitted": sorted(fitted.get(kind, ()))}
            for kind, blocks in
            (("attention", self.attention), ("feed_forward", self.feed_forward), ("head", self.head))
        }


# On 2 cores with AVX-512, all products of OpenFlamingo-3B's shapes take 1.15 times as long with blocks of 128 as with
# blocks of 256 at 8 bits, 0.95 to 1.15 at 4 bits, and 1.3 to 1.6 with blocks of 32 (`benchmarks/results`, 2026-11-23,
# choices). Rounded with errors in mind, the packaged model loses no more with blocks of 128 than with blocks of 32.
INT8, INT4 = Blocks(8, 256), Blocks(4, DEFAULT_BLOCK)
SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("int8", INT8, INT8, INT8),
        Scheme("fp8", INT8, INT8, INT8, floating=True),
        Scheme("mixed", INT8, INT4, INT8),
        Scheme("int4", INT4, INT4, INT8),
    )
}


def scheme_called(name: str) -> Scheme:
    """The scheme. Raises `UsageError` that lists the known ones."""
    if name not in SCHEMES:
        raise UsageError(f"unknown quantization {name!r}; known: {', '.join(SCHEMES)}")
    return SCHEMES[name]
