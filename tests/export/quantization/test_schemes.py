"""The schemes of quantization: their names, their bits, how the manifest describes them."""

from __future__ import annotations

import pytest

from flamingo_rt.errors import UsageError
from flamingo_rt.export.quantization.quantization_options import SCHEMES, SCHEMES_OF, scheme_called


def test_an_unknown_scheme_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown quantization 'int3'; known: int8, fp8, mixed, int4"):
        scheme_called("int3")


def test_a_scheme_is_described_by_bits_and_blocks_asked_for_and_used() -> None:
    assert scheme_called("mixed").described({"attention": {256}, "feed_forward": {128, 64}}) == {
        "attention": {"bits": 8, "block": 256, "fitted": [256]},
        "feed_forward": {"bits": 4, "block": 256, "fitted": [64, 128]},
        "head": {"bits": 8, "block": 256, "fitted": []},
    }
    assert [SCHEMES[name].bits for name in SCHEMES_OF["ort"]] == [{8}, {4, 8}, {4, 8}]
