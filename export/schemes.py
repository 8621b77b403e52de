"""Which matrices of the language model get how many bits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flamingo_rt.errors import UsageError
from flamingo_rt.export.blocks import Blocks
from flamingo_rt.export.choices import DEFAULT_BLOCK


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
# blocks of 256 at 8 bits, 0.95 to 1.15 at 4 bits, and 1.3 to 1.6 with blocks of 32 (`benchmarks/choices.py`). Rounded
# with errors in mind, the packaged model loses no more with blocks of 128 than with blocks of 32.
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
