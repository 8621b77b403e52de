"""The wire format, against the real library's files."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from flamingo_rt.protobuf import field, fields, integers


@given(st.integers(1, 2**28), st.integers(0, 2**63))
def test_an_integer_survives(number: int, value: int) -> None:
    assert list(fields(memoryview(field(number, value)))) == [(number, value)]


@given(st.binary(max_size=300))
def test_bytes_survive_beside_other_fields(content: bytes) -> None:
    found = list(fields(memoryview(field(3, content) + field(4, 7))))
    assert [(number, bytes(value) if number == 3 else value) for number, value in found] == [(3, content), (4, 7)]


def test_every_field_of_a_real_message_is_found() -> None:
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [2, 3], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    attribute = helper.make_attribute("alpha", 0.5)  # a fixed32
    found = dict(fields(memoryview(tensor.SerializeToString())))
    assert bytes(found[8]) == b"w"
    assert len(found[4]) == 24
    assert bytes(dict(fields(memoryview(attribute.SerializeToString())))[2]) == b"\0\0\0\x3f"


def test_repeated_integers_may_be_packed() -> None:
    assert integers(300) == [300]
    assert integers(memoryview(b"\xac\x02\x05")) == [300, 5]


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        list(fields(memoryview(data)))
    except ValueError:
        return


@pytest.mark.parametrize("data", [b"\x0a\x05abc", b"\x0a", b"\x08", b"\x0b", b"\xff" * 11])
def test_a_message_cut_short_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"cut short|wire type"):
        list(fields(memoryview(data)))


def test_a_written_message_is_read_by_the_real_library() -> None:
    text = field(1, "key") + field(2, "värde")
    entry = onnx.StringStringEntryProto.FromString(text)
    assert (entry.key, entry.value) == ("key", "värde")
