"""Options of quantization: schemes, sizes of blocks, rounding, accepted cost.

The one home of the block size: its default with the reason, the sizes that can be asked for, and the rule that fits it
to a matrix (`Blocks.fitting`). Nothing here imports numpy or torch, since the command line shows these choices in its
help. The names of all schemes are `flamingo_rt.bundle.QUANTIZATIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flamingo_rt.errors import UsageError

if TYPE_CHECKING:
    from flamingo_rt.export.quantization.calibration import Calibration

# Numbers of a 4-bit matrix that share a scale, by lowering; the last is the default. TensorRT takes at most 128.
BLOCKS_OF = {"ort": (32, 64, 128, 256), "tensorrt": (32, 64, 128)}
BLOCKS = BLOCKS_OF["ort"]
DEFAULT_BLOCK = BLOCKS[-1]
SMALLEST_BLOCK = 16  # the smallest that the operators accept


@dataclass(frozen=True)
class Blocks:
    """Storage of a matrix: ``bits`` (4 or 8) per number, and one scale per ``block`` numbers of a row."""

    bits: int
    block: int

    def fitting(self, width: int) -> Blocks | None:
        """Halve the block until it divides rows of ``width`` numbers; None when no block of `SMALLEST_BLOCK` or more
        does."""
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
    """Blocks of the language model's matrices, by their kind; ``head`` covers the embedding too. With ``floating``,
    8-bit numbers are floating-point (e4m3) instead of integers."""

    name: str
    attention: Blocks
    feed_forward: Blocks
    head: Blocks
    floating: bool = False

    def with_block(self, block: int) -> Scheme:
        """Return the scheme with 4-bit blocks of another size."""
        def resized(blocks: Blocks) -> Blocks:
            return Blocks(4, block) if blocks.bits == 4 else blocks

        return replace(
            self, attention=resized(self.attention), feed_forward=resized(self.feed_forward), head=resized(self.head)
        )

    def kind_of(self, name: str) -> str:
        """Kind of the weight ``name``: ``attention``, ``feed_forward`` or ``head``."""
        if ".ff." in name:
            return "feed_forward"
        return "head" if "language.head." in name or "language.embedding." in name else "attention"

    def blocks_of(self, name: str, width: int) -> Blocks | None:
        """Blocks of the weight ``name``, fitted to its rows of ``width`` numbers; None when none fit."""
        blocks: Blocks = getattr(self, self.kind_of(name))
        return blocks.fitting(width)

    @property
    def bits(self) -> set[int]:
        """All numbers of bits in use."""
        return {blocks.bits for blocks in (self.attention, self.feed_forward, self.head)}

    def described(self, fitted: Mapping[str, Collection[int]], lowering: str = "ort") -> dict[str, dict[str, Any]]:
        """Describe each kind of matrix for the manifest: its ``bits``, the ``block`` asked for, and ``fitted``, the
        sorted block sizes that its matrices got. 8-bit matrices for TensorRT have one scale per column, so no block."""
        described: dict[str, dict[str, Any]] = {}
        for kind in ("attention", "feed_forward", "head"):
            blocks: Blocks = getattr(self, kind)
            described[kind] = {"bits": blocks.bits}
            if lowering == "ort" or blocks.bits == 4:
                described[kind] |= {"block": blocks.block, "fitted": sorted(fitted.get(kind, ()))}
        return described


# The largest block is the default. On 2 cores with AVX-512, all products of OpenFlamingo-3B's shapes take 1.15 times as
# long with blocks of 128 as with blocks of 256 at 8 bits, 0.95 to 1.15 at 4 bits, and 1.3 to 1.6 with blocks of 32
# (benchmarks/results/*-choices.json). Smaller blocks are more accurate.
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
WITHOUT_4_BITS = tuple(name for name, scheme in SCHEMES.items() if 4 not in scheme.bits)
# By lowering, the mildest first.
SCHEMES_OF = {
    "ort": ("int8", "mixed", "int4"), "tensorrt": ("int8", "fp8", "mixed", "int4"), "tensorrt-classic": ("int8",),
}
ROUNDINGS = ("gptq", "nearest")  # of 4-bit matrices; the first is the default
RANDOM_PROMPTS = "random prompts"  # what the cost is measured on without calibration prompts


@dataclass(frozen=True)
class Limits:
    """Accepted cost: the lowest cosine of a graph's output on its worst prompt, and the largest share of greedy tokens
    that change."""

    cosine: float
    changed: float


# Wider than the cost of the packaged model and of random ones; a wrong matrix is far outside.
LIMITS = {
    "int8": Limits(0.99, 0.1), "fp8": Limits(0.99, 0.1), "mixed": Limits(0.97, 0.15), "int4": Limits(0.95, 0.2),
}


@dataclass(frozen=True)
class Quantize:
    """Options of one quantized export.

    ``scheme`` is int8, fp8, mixed or int4. ``rounding`` of 4-bit matrices is ``gptq``, which needs ``calibration``
    prompts, or ``nearest``. With ``calibration``, the cost is measured on prompts of the same source that were not
    calibrated with; without, on random prompts. ``min_cosine`` and ``max_changed`` (a share, 0 to 1) override the
    scheme's `LIMITS`. ``evaluate`` is the number of drawn scenes that the model is asked about before and after, for
    models of `flamingo-rt train`. ``block`` is how many numbers of a 4-bit matrix share a scale, one of `BLOCKS`: small
    blocks are more accurate, large ones faster.

    Raises `UsageError` for an unknown scheme, rounding or block, for gptq without calibration prompts, and for numbers
    out of range.
    """

    scheme: str
    rounding: str = ROUNDINGS[0]
    calibration: Calibration | None = None
    min_cosine: float | None = None
    max_changed: float | None = None
    evaluate: int = 0
    block: int | None = None

    def __post_init__(self) -> None:
        scheme_called(self.scheme)
        if self.rounding not in ROUNDINGS:
            raise UsageError(f"unknown rounding {self.rounding!r}; known: {', '.join(ROUNDINGS)}")
        check_calibrated(self.scheme, self.rounding, self.calibration is not None)
        if self.block is not None and self.block not in BLOCKS:
            raise UsageError(f"block is {self.block}; known: {', '.join(map(str, BLOCKS))}")
        if isinstance(self.evaluate, bool) or not isinstance(self.evaluate, int) or self.evaluate < 0:
            raise UsageError(f"evaluate is {self.evaluate!r}; it must be a number of scenes, 0 or more")
        for name, lowest in (("min_cosine", -1.0), ("max_changed", 0.0)):
            value = getattr(self, name)
            if value is not None and not (lowest <= value <= 1.0 and math.isfinite(value)):
                raise UsageError(f"{name} is {value}; it must be from {lowest:g} to 1")

    @property
    def error_aware(self) -> bool:
        """Whether there are 4-bit matrices and gptq rounds them; 8-bit ones lose next to nothing when rounded to the
        nearest."""
        return self.rounding == "gptq" and self.scheme not in WITHOUT_4_BITS

    @property
    def limits(self) -> Limits:
        """Accepted cost: the scheme's, unless given."""
        usual = LIMITS[self.scheme]
        return Limits(
            usual.cosine if self.min_cosine is None else self.min_cosine,
            usual.changed if self.max_changed is None else self.max_changed,
        )

    def scheme_for(self, lowering: str) -> Scheme:
        """Scheme with 4-bit blocks of the size asked for, or else of the lowering's largest. Raises `UsageError` for a
        scheme or block that the lowering does not have."""
        if self.scheme not in SCHEMES_OF[lowering]:
            known = ", ".join(SCHEMES_OF[lowering])
            raise UsageError(f"the lowering {lowering} has no quantization {self.scheme}; known: {known}")
        scheme, blocks = scheme_called(self.scheme), BLOCKS_OF.get(lowering, ())
        if self.block is None:
            return scheme.with_block(blocks[-1]) if blocks else scheme
        if self.block not in blocks:
            known = ", ".join(map(str, blocks)) or "none"
            raise UsageError(f"block is {self.block}; known for the lowering {lowering}: {known}")
        return scheme.with_block(self.block)


def scheme_called(name: str) -> Scheme:
    """Look up a scheme. Raises `UsageError` that lists the known ones."""
    if name not in SCHEMES:
        raise UsageError(f"unknown quantization {name!r}; known: {', '.join(SCHEMES)}")
    return SCHEMES[name]


def check_calibrated(scheme: str, rounding: str, calibrated: bool) -> None:
    """Raise `UsageError` when gptq is to round 4-bit matrices without calibration prompts."""
    if rounding == "gptq" and scheme not in WITHOUT_4_BITS and not calibrated:
        raise UsageError(
            f"{scheme} rounds its 4-bit matrices on calibration prompts: give --calibration FILE with prompts such as "
            "the model will get (--calibration scenes for a model of flamingo-rt train), or --rounding nearest, which "
            "needs none and changes several times as many greedy tokens"
        )
