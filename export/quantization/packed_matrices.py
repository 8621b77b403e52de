"""Matrices in packed blocks of 4 or 8 bits, as ONNX Runtime's MatMulNBits and GatherBlockQuantized read them.

A row of the stored matrix is an output (of a table: an entry). Along a row, every ``block`` numbers share a scale; a
number is stored as an unsigned integer q of ``bits`` bits and means (q - 2**(bits - 1)) * scale.
https://onnxruntime.ai/docs/ContribOperators: com.microsoft.MatMulNBits.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flamingo_rt.export.quantization.quantization_options import Blocks


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix [rows, width]: ``packed`` uint8 [rows, width / block, block * bits / 8], ``scales`` float32 [rows,
    width / block]."""

    blocks: Blocks
    packed: np.ndarray
    scales: np.ndarray

    def scaled(self, factor: float) -> QuantizedMatrix:
        """Multiply every number by ``factor``."""
        return QuantizedMatrix(self.blocks, self.packed, self.scales * np.float32(factor))

    def integers(self) -> np.ndarray:
        """Unpacked integers around zero, before scaling: int16 [rows, width]."""
        packed = self.packed
        if self.blocks.bits == 4:  # the lower half of a byte comes first
            packed = np.stack([packed & 15, packed >> 4], axis=-1)
        return packed.reshape(len(packed), -1).astype(np.int16) - 2 ** (self.blocks.bits - 1)

    def dequantized(self) -> np.ndarray:
        """Integers times their scales, float32 [rows, width]."""
        return self.integers() * np.repeat(self.scales, self.blocks.block, axis=1)


def pack(numbers: np.ndarray, scales: np.ndarray, blocks: Blocks) -> QuantizedMatrix:
    """Pack ``numbers`` [rows, width / block, block], integers around zero of any type, with their scales [rows, width /
    block]."""
    packed = (numbers + 2 ** (blocks.bits - 1)).astype(np.uint8)
    if blocks.bits == 4:  # the lower half of a byte comes first
        packed = packed[..., ::2] | packed[..., 1::2] << 4
    return QuantizedMatrix(blocks, packed, scales)


def stacked(parts: list[QuantizedMatrix]) -> QuantizedMatrix:
    """Concatenate the rows of ``parts``, which have the same blocks."""
    return QuantizedMatrix(
        parts[0].blocks, np.concatenate([p.packed for p in parts]), np.concatenate([p.scales for p in parts])
    )


def round_to_nearest(matrix: np.ndarray, blocks: Blocks) -> QuantizedMatrix:
    """Round ``matrix``, float32 [rows, width], to the nearest; each block's largest number sets its scale."""
    with quantizers():
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            DefaultWeightOnlyQuantizer,
        )
    config = DefaultWeightOnlyQuantConfig(block_size=blocks.block, is_symmetric=True, bits=blocks.bits)
    packed, scales, _ = DefaultWeightOnlyQuantizer(config).qbits_block_quant(np.ascontiguousarray(matrix.T))
    return QuantizedMatrix(blocks, packed, scales)


@contextlib.contextmanager
def quantizers() -> Iterator[None]:
    """Keep the root logger as it is while onnxruntime's quantizers are imported: they configure it."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
