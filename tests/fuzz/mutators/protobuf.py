"""Changes to protobuf messages, such as ONNX graphs, by their fields: lengths of all messages around stay right."""

from __future__ import annotations

from random import Random

from . import raw

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
TEXTS = (b"", b"../outside/secret.txt", b"/etc/passwd", b"a" * 3000, b"\x1b]52;c;aGFjaw==\x07", b"\x00", b"\xff\xfe",
         b"x",
         b"language_model.onnx.data", b"tokenizer.json", b"hostile.data", b"Loop", b"If", b"MatMul", b"Custom",
         b"0" * 30, b"-1")

Field = tuple[int, int, int | bytes]  # number, wire type, value


def parsed(message: bytes) -> list[Field]:
    """The fields of a message. Raises `ValueError` when it is none."""
    fields: list[Field] = []
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, place = _varint(message, place)
        else:
            size = {FIXED64: 8, FIXED32: 4}.get(wire)
            if size is None:
                if wire != BYTES:
                    raise ValueError(f"wire type {wire}")
                size, place = _varint(message, place)
            value, place = message[place : place + size], place + size
        if place > len(message) or not number:
            raise ValueError("cut short")
        fields.append((number, wire, value))
    return fields


def written(fields: list[Field]) -> bytes:
    """The inverse of `parsed`."""
    parts = []
    for number, wire, value in fields:
        parts.append(_encoded(number << 3 | wire))
        if wire == VARINT:
            parts.append(_encoded(value))
        else:
            parts.append((_encoded(len(value)) if wire == BYTES else b"") + value)
    return b"".join(parts)


def mutate(rng: Random, message: bytes) -> bytes:
    """Make one to three changes, each of one field at any depth."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        message = _changed(rng, message)
    return message


def _changed(rng: Random, message: bytes) -> bytes:
    fields = parsed(message)
    if not fields:
        return message
    # Long fields (the nodes and weights) would always win by size, short ones by number: half and half.
    place = rng.randrange(len(fields))
    number, wire, value = fields[place]
    if wire == BYTES and rng.random() < 0.85 and _is_message(value):
        fields[place] = (number, wire, _changed(rng, value))
        return written(fields)
    choice = rng.random()
    if choice < 0.12:
        del fields[place]
    elif choice < 0.2:
        fields.insert(place, fields[place])
    elif choice < 0.28:
        other = rng.randrange(len(fields))
        fields[place], fields[other] = fields[other], fields[place]
    elif choice < 0.34:
        fields.insert(place, (rng.randrange(1, 40), VARINT, rng.choice(raw.NUMBERS)))
    elif wire == VARINT:
        fields[place] = (number, wire, rng.choice((*raw.NUMBERS, value + 1, max(value - 1, 0))))
    elif wire == BYTES:
        fields[place] = (number, wire, rng.choice(TEXTS) if rng.random() < 0.5 else raw.mutate(rng, value))
    else:
        fields[place] = (number, wire, bytes(rng.randrange(256) for _ in value))
    return written(fields)


def _is_message(value: bytes) -> bool:
    try:
        return bool(parsed(value))
    except ValueError:
        return False


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(message) and shift < 70:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value & (1 << 64) - 1, place
    raise ValueError("varint")


def _encoded(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def replaced(message: bytes, old: bytes, new: bytes) -> bytes:
    """A message in which every field, at any depth, that is ``old`` is ``new``."""
    fields = []
    for number, wire, value in parsed(message):
        if wire == BYTES and value == old:
            value = new
        elif wire == BYTES and old in value and _is_message(value):
            value = replaced(value, old, new)
        fields.append((number, wire, value))
    return written(fields)
