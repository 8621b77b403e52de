"""Matrices in blocks: near the numbers they stand for, and packed as ONNX Runtime's operators read them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from few_nodes import MICROSOFT, matmul_nbits, run_nodes
from onnx import helper

from flamingo_rt.export.quantization.packed_matrices import QuantizedMatrix, round_to_nearest, stacked
from flamingo_rt.export.quantization.quantization_options import Blocks

FORMS = pytest.mark.parametrize("blocks", [Blocks(bits, block) for bits in (4, 8) for block in (16, 32, 128)], ids=str)
ROWS, WIDTH = 7, 256


def random_matrix(rows: int = ROWS, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """Rows of different sizes, so that no row's scale serves another."""
    generator = np.random.default_rng(seed)
    sizes = generator.uniform(0.1, 10, (rows, 1))
    return (generator.standard_normal((rows, width)) * sizes).astype(np.float32)


def by_hand(matrix: QuantizedMatrix) -> np.ndarray:
    """Dequantize a matrix number by number, from the definition."""
    blocks, (rows, count, _) = matrix.blocks, matrix.packed.shape
    result = np.zeros((rows, count * blocks.block), dtype=np.float32)
    for row in range(rows):
        for column in range(count * blocks.block):
            block, place = divmod(column, blocks.block)
            if blocks.bits == 8:
                number = int(matrix.packed[row, block, place])
            else:
                number = int(matrix.packed[row, block, place // 2]) >> (4 if place % 2 else 0) & 15
            result[row, column] = np.float32(number - 2 ** (blocks.bits - 1)) * matrix.scales[row, block]
    return result


# Rounding


@FORMS
def test_every_number_is_rounded_to_the_nearest_that_its_block_has(blocks: Blocks) -> None:
    """Half a step away at most, but where the number is beyond the last step: there are 8 (128) on one side of zero, on
    the side of the block's largest number, and one fewer on the other."""
    matrix = random_matrix()
    rounded = round_to_nearest(matrix, blocks)
    scales, half = rounded.scales.repeat(blocks.block, axis=1), 2 ** (blocks.bits - 1)
    error = np.abs(rounded.dequantized() - matrix)
    steps = matrix / scales
    within = steps <= half - 0.5
    assert (error[within] <= np.abs(scales)[within] / 2 * (1 + 1e-4)).all()
    np.testing.assert_allclose(rounded.dequantized()[~within], (half - 1) * scales[~within], rtol=1e-6)
    assert within.mean() > 0.9
    assert steps.min() > -half - 1e-4
    assert steps.max() < half + 1e-4


@FORMS
def test_a_blocks_largest_number_is_kept_and_sets_the_scale(blocks: Blocks) -> None:
    matrix = random_matrix()
    rounded = round_to_nearest(matrix, blocks)
    grouped, kept = (x.reshape(ROWS, -1, blocks.block) for x in (matrix, rounded.dequantized()))
    place = np.abs(grouped).argmax(-1)[..., None]
    largest = np.take_along_axis(grouped, place, -1)
    np.testing.assert_allclose(np.take_along_axis(kept, place, -1), largest, rtol=1e-6)
    np.testing.assert_allclose(np.abs(rounded.scales), np.abs(largest[..., 0]) / 2 ** (blocks.bits - 1), rtol=1e-6)


def test_a_block_of_zeros_stays_zero() -> None:
    matrix = random_matrix()
    matrix[:, 32:64] = 0
    rounded = round_to_nearest(matrix, Blocks(4, 32))
    assert not rounded.dequantized()[:, 32:64].any()
    assert np.isfinite(rounded.scales).all()


@FORMS
def test_the_shapes_are_those_announced(blocks: Blocks) -> None:
    rounded = round_to_nearest(random_matrix(), blocks)
    assert blocks.shapes(ROWS, WIDTH) == (rounded.packed.shape, rounded.scales.shape)
    assert (rounded.packed.dtype, rounded.scales.dtype) == (np.uint8, np.float32)
    assert 8 * rounded.packed.nbytes == blocks.bits * ROWS * WIDTH
    assert rounded.dequantized().shape == (ROWS, WIDTH)


# Packing


@FORMS
def test_the_numbers_are_those_of_the_definition(blocks: Blocks) -> None:
    rounded = round_to_nearest(random_matrix(), blocks)
    np.testing.assert_array_equal(rounded.dequantized(), by_hand(rounded))


@FORMS
def test_the_runtimes_product_is_that_of_the_numbers(blocks: Blocks) -> None:
    rounded, x = round_to_nearest(random_matrix(), blocks), random_matrix(5, seed=1)
    expected = x.astype(np.float64) @ rounded.dequantized().astype(np.float64).T
    np.testing.assert_allclose(matmul_nbits(x, rounded), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@FORMS
def test_the_runtime_takes_rows_of_the_numbers(blocks: Blocks) -> None:
    rounded, ids = round_to_nearest(random_matrix(), blocks), np.array([[3, 0, 6], [6, 1, 5]])
    node = helper.make_node(
        "GatherBlockQuantized", ["table", "ids", "scales"], ["y"], domain=MICROSOFT, gather_axis=0, quantize_axis=2,
        block_size=blocks.block, bits=blocks.bits,
    )
    found = run_nodes([node], {"ids": ids}, {"table": rounded.packed, "scales": rounded.scales[..., None]})
    np.testing.assert_allclose(found.reshape(*ids.shape, WIDTH), rounded.dequantized()[ids], rtol=1e-6, atol=1e-7)


@FORMS
@pytest.mark.parametrize("factor", [0.37, -1.5])
def test_a_factor_goes_into_the_scales(blocks: Blocks, factor: float) -> None:
    rounded, x = round_to_nearest(random_matrix(), blocks), random_matrix(5, seed=1)
    scaled = rounded.scaled(factor)
    np.testing.assert_array_equal(scaled.packed, rounded.packed)
    np.testing.assert_allclose(scaled.dequantized(), rounded.dequantized() * factor, rtol=1e-6)
    expected = factor * matmul_nbits(x, rounded)
    np.testing.assert_allclose(matmul_nbits(x, scaled), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@FORMS
def test_stacked_matrices_have_the_rows_of_all(blocks: Blocks) -> None:
    parts = [round_to_nearest(random_matrix(rows, seed=rows), blocks) for rows in (2, 5, 1)]
    whole = stacked(parts)
    assert whole.blocks == blocks
    np.testing.assert_array_equal(whole.dequantized(), np.concatenate([part.dequantized() for part in parts]))
    np.testing.assert_array_equal(
        whole.dequantized(),
        round_to_nearest(np.concatenate([random_matrix(rows, seed=rows) for rows in (2, 5, 1)]), blocks).dequantized(),
    )


# Sizes


@pytest.mark.parametrize(
    ("width", "block"), [(4096, 128), (128, 128), (192, 64), (96, 32), (48, 16), (80, 16), (24, None), (8, None)]
)
def test_a_block_is_the_largest_half_of_a_half_that_divides_the_rows(width: int, block: int | None) -> None:
    expected = Blocks(4, block) if block else None
    assert Blocks(4, 128).fitting(width) == expected


def test_a_block_grows_no_larger_than_it_was_asked_for() -> None:
    assert Blocks(8, 32).fitting(4096) == Blocks(8, 32)


# Importing


def test_the_quantizers_leave_logging_as_it_was() -> None:
    """Import them in a new process: logging is set up by the first import."""
    code = "\n".join([
        "import logging, sys",
        "import numpy as np",
        "from flamingo_rt.export.quantization.packed_matrices import Blocks, round_to_nearest",
        "own = logging.NullHandler()",
        "logging.getLogger().addHandler(own)",
        "logging.getLogger().setLevel(logging.ERROR)",
        "matrix = np.eye(16, dtype=np.float32)",
        "round_to_nearest(matrix, Blocks(4, 16))",
        "assert logging.getLogger().handlers == [own], logging.getLogger().handlers",
        "assert logging.getLogger().level == logging.ERROR",
        "assert 'onnxruntime.quantization' in sys.modules",
    ])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ""
