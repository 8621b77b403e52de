"""What is measured of the defaults: which matrices, and that every form of them computes what it says."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import choices
from flamingo_rt.export.quantization.packed_blocks import QuantizedMatrix
from flamingo_rt.export.quantization.quantization_options import Blocks
from flamingo_rt.loading import PACKAGED_BUNDLE
from flamingo_rt.presets import preset


def test_the_matrices_are_those_a_token_is_multiplied_with() -> None:
    # Without norms, gates and the keys and values of pictures: of the packaged model's 4 layers 2 are counted, each
    # with its cross-attention.
    config = preset("tiny")
    sizes = {kind: sum(width * rows for width, rows in shapes) for kind, shapes in choices.matrices(config).items()}
    width, language = config.language.width, config.language
    assert sizes["head"] == width * language.vocab_size
    queries_keys_values = width * (language.heads + 2 * language.kv_heads) * language.head_width
    assert sizes["attention"] == 2 * (queries_keys_values + 3 * width * width)
    assert sizes["feed_forward"] == 2 * (3 * width * language.ff_width + 2 * 4 * width * width)


@pytest.mark.parametrize("blocks", [Blocks(8, 32), Blocks(4, 64)])
def test_a_session_multiplies_with_blocks_of_that_form(blocks: Blocks) -> None:
    session = choices.block_session([(64, 48)], blocks, 1)
    tokens = np.eye(64, dtype=np.float32)[:3]  # one number a row: 8-bit activations are exact
    (found,) = session.run(None, {"x64": tokens})
    rng = np.random.default_rng(0)
    packed_shape, scales_shape = blocks.shapes(48, 64)
    packed = rng.integers(0, 256, packed_shape, dtype=np.uint8)
    matrix = QuantizedMatrix(blocks, packed, rng.uniform(1e-3, 2e-3, scales_shape).astype(np.float32))
    np.testing.assert_allclose(found, tokens @ matrix.dequantized().T, atol=1e-6)


def test_blocks_are_told_against_the_largest_of_as_many_bits_and_tokens() -> None:
    samples = {f"8 bits, block {block}, T={count}": [time * count] * 3
               for block, time in ((256, 2.0), (32, 3.0)) for count in choices.TOKENS}
    assert choices.blocks_table(samples, "matrices").splitlines()[2:] == [
        "| 8 bits | block 256 | 2 (2 to 2), 1.00 | 16 (16 to 16), 1.00 | 128 (128 to 128), 1.00 |",
        "| 8 bits | block 32 | 3 (3 to 3), 1.50 | 24 (24 to 24), 1.50 | 192 (192 to 192), 1.50 |",
    ]


def test_a_token_of_a_bundle_is_computed_with_and_without_spinning() -> None:
    samples = choices.measure_threads(PACKAGED_BUNDLE, 2, 1)
    assert list(samples) == ["2 threads, spinning", "2 threads, not spinning", "1 thread, spinning"]
    assert all(len(times) == choices.CALLS - 1 for times in samples.values())
    assert [name for name, times in choices.measure_threads(PACKAGED_BUNDLE, 1, 1).items()] == [
        "1 thread, spinning", "1 thread, not spinning",
    ]


def test_every_call_of_a_run_but_the_first_is_counted() -> None:
    calls: list[int] = []
    times = choices.timed(lambda: calls.append(1))()["ms"]
    assert len(calls) == choices.CALLS == len(times) + 1
