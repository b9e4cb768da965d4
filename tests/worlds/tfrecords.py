"""Writing TFRecord files of ``tf.train.Example`` messages, apart from the code that reads them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

Values = Sequence[Any]


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """The checksum, a byte at a time."""
    state = 0xFFFFFFFF
    for byte in data:
        state = _TABLE[(state ^ byte) & 255] ^ state >> 8
    return state ^ 0xFFFFFFFF


def checksum(data: bytes) -> bytes:
    """The masked checksum as a file has it."""
    crc = crc32c(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def framed(data: bytes) -> bytes:
    """One record of a file."""
    length = struct.pack("<Q", len(data))
    return length + checksum(length) + data + checksum(data)


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, data: bytes) -> bytes:
    """A field with a length."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def feature(values: Values, packed: bool = True) -> bytes:
    """A Feature: bytes, floats or whole numbers by the first value; none at all for no value."""
    if not values:
        return b""
    if isinstance(values[0], bytes):
        return field(1, b"".join(field(1, value) for value in values))
    if isinstance(values[0], float):
        pieces = [struct.pack("<f", value) for value in values]
        return field(2, field(1, b"".join(pieces)) if packed else b"".join(b"\x0d" + piece for piece in pieces))
    pieces = [varint(value) for value in values]
    return field(3, field(1, b"".join(pieces)) if packed else b"".join(b"\x08" + piece for piece in pieces))


def example(features: Mapping[str, Values], packed: bool = True) -> bytes:
    """A ``tf.train.Example``."""
    entries = [
        field(1, field(1, name.encode()) + field(2, feature(values, packed))) for name, values in features.items()
    ]
    return field(1, b"".join(entries))
