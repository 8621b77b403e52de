"""The part of Protocol Buffers' wire format that ONNX files use.

Our own, since an installed runtime has no ``onnx`` package; and strict, since untrusted graphs are checked with it.

https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
MOST_KEY, MOST_VALUE = 2**32 - 1, 2**64 - 1


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of each field: an integer, or the bytes of a text, a message or a packed list.

    Raises `ValueError` when the bytes are not a message.
    """
    return ((number, value) for number, value, _ in encoded_fields(data))


def encoded_fields(data: memoryview) -> Iterator[tuple[int, int | memoryview, memoryview]]:
    """(field number, value, all bytes of the field), see `fields`.

    Refuses numbers that other readers would truncate: what is read here must be what they read.
    """
    position = 0
    while position < len(data):
        start = position
        key, position = _varint(data, position)
        if key > MOST_KEY or position - start > 5:
            raise ValueError("a field has an impossible number")
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, position = _varint(data, position)
            yield number, value, data[start:position]
            continue
        if wire == LENGTH:
            size, position = _varint(data, position)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"unknown wire type {wire}")
        if position + size > len(data):
            raise ValueError("the message is cut short")
        content = data[position : position + size]
        position += size
        yield number, content, data[start:position]


def integers(value: int | memoryview) -> list[int]:
    """One entry of a repeated integer field, or all of a packed one."""
    if isinstance(value, int):
        return [value]
    found, position = [], 0
    while position < len(value):
        number, position = _varint(value, position)
        found.append(number)
    return found


def field(number: int, value: int | str | bytes) -> bytes:
    """One field of a message, encoded."""
    if isinstance(value, int):
        return _encoded(number << 3 | VARINT) + _encoded(value)
    content = value.encode() if isinstance(value, str) else value
    return _encoded(number << 3 | LENGTH) + _encoded(len(content)) + content


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value > MOST_VALUE:
                raise ValueError("a number has more than 64 bits")
            return value, position
        shift += 7
    raise ValueError("the message is cut short")


def _encoded(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
