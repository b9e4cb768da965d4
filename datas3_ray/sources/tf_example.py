"""The message ``tf.train.Example``: named lists of bytes, floats or whole numbers, and where in it the bytes lie."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

MOST_FEATURES = 10_000
MOST_VALUES = 100_000

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # how a field's value is written
_KINDS: dict[int, Kind] = {1: "bytes", 2: "float", 3: "int64"}

Kind = Literal["bytes", "float", "int64"]


class ExampleError(ValueError):
    """The bytes are no Example, or hold more features or values than any has."""


class Span(NamedTuple):
    """The bytes from ``start`` to ``end``, without it, of the message."""

    start: int
    end: int


@dataclass
class Feature:
    """A list of values of one kind (None: an empty feature), not yet taken apart: ``lists`` are where it is written."""

    kind: Kind | None = None
    lists: list[Span] = field(default_factory=list)


def parse_example(data: bytes) -> dict[str, Feature]:
    """The features of an Example by their names; values are taken apart by :func:`byte_spans` and :func:`numbers`.

    Raises ExampleError for what is none.

    >>> data = b"\\x0a\\x0f\\x0a\\x0d\\x0a\\x03cat\\x12\\x06\\x0a\\x04\\x0a\\x02hi"
    >>> features = parse_example(data)
    >>> features
    {'cat': Feature(kind='bytes', lists=[Span(start=13, end=17)])}
    >>> [data[span.start : span.end] for span in byte_spans(data, features["cat"])]
    [b'hi']
    """
    features: dict[str, Feature] = {}
    for group in _messages(data, Span(0, len(data)), 1):
        for entry in _messages(data, group, 1):
            name, feature = _entry(data, entry)
            features[name] = feature  # of two entries with one name the last counts
            if len(features) > MOST_FEATURES:
                raise ExampleError(f"more than {MOST_FEATURES} features")
    return features


def byte_spans(data: bytes, feature: Feature | None) -> list[Span]:
    """Where the values of a list of bytes lie in ``data``; none for a feature of another kind, or a missing one."""
    if feature is None or feature.kind != "bytes":
        return []
    spans: list[Span] = []
    for place in feature.lists:
        for value in _messages(data, place, 1):
            spans.append(value)
            _check_count(len(spans))
    return spans


def numbers(data: bytes, feature: Feature | None) -> list[float] | list[int]:
    """The values of a list of floats or whole numbers, packed or not; none for bytes, or a missing feature."""
    if feature is None or feature.kind in (None, "bytes"):
        return []
    values: list[float] = []
    whole = feature.kind == "int64"
    for place in feature.lists:
        for number, wire, value in _fields(data, place):
            if number != 1:
                continue
            if wire == _BYTES and isinstance(value, Span):
                values += _packed(data, value, whole, MOST_VALUES - len(values))
            elif wire == _VARINT and whole and isinstance(value, int):
                values.append(_signed(value))
            elif wire == _FIXED32 and not whole and isinstance(value, Span):
                values += struct.unpack("<f", data[value.start : value.end])
            _check_count(len(values))
    return values


def first_text(data: bytes, features: Mapping[str, Feature], *names: str) -> str | None:
    """The text of the first of ``names`` that has one; a whole number counts as its digits. None where all are empty.

    Raises ExampleError for bytes that are not UTF-8.
    """
    for name in names:
        feature = features.get(name)
        for span in byte_spans(data, feature)[:1]:
            try:
                text = data[span.start : span.end].decode().strip()
            except UnicodeDecodeError:
                raise ExampleError(f"the feature {name!r} is no text") from None
            if text:
                return text
        if feature is not None and feature.kind == "int64":
            for number in numbers(data, feature)[:1]:
                return str(number)
    return None


def _entry(data: bytes, place: Span) -> tuple[str, Feature]:
    name, feature = "", Feature()
    for number, wire, value in _fields(data, place):
        if wire != _BYTES or not isinstance(value, Span):
            continue
        if number == 1:
            name = data[value.start : value.end].decode("utf-8", "backslashreplace")
        elif number == 2:
            for kind, inner_wire, inner in _fields(data, value):
                if kind in _KINDS and inner_wire == _BYTES and isinstance(inner, Span):
                    if feature.kind != _KINDS[kind]:  # a feature has one kind: that which is written last
                        feature = Feature(_KINDS[kind])
                    feature.lists.append(inner)
                    _check_count(len(feature.lists))
    return name, feature


def _messages(data: bytes, place: Span, wanted: int) -> Iterator[Span]:
    """The values with a length in the field ``wanted``."""
    for number, wire, value in _fields(data, place):
        if number == wanted and wire == _BYTES and isinstance(value, Span):
            yield value


def _fields(data: bytes, place: Span) -> Iterator[tuple[int, int, Span | int]]:
    """Number, way of writing and value of each field: a varint's number, or else where the value lies."""
    at, end = place
    while at < end:
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at, end)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at, end)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ExampleError(f"byte {at} begins a value of an unknown kind ({wire})")
        if size > end - at:
            raise ExampleError(f"a value of {size} bytes at byte {at} leads beyond its end at byte {end}")
        yield number, wire, Span(at, at + size)
        at += size


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A whole number, seven bits a byte, and where it ends."""
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if shift > 63:
            break
    raise ExampleError(f"the whole number that ends at byte {at} is cut off or too long")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _packed(data: bytes, place: Span, whole: bool, most: int) -> list[float]:
    at, end = place
    values: list[float] = []
    if not whole:
        if (end - at) % 4:
            raise ExampleError(f"a list of floats at byte {at} has {end - at} bytes, no multiple of 4")
        _check_count((end - at) // 4)
        return list(struct.unpack(f"<{(end - at) // 4}f", data[at:end]))
    while at < end:
        value, at = _varint(data, at, end)
        values.append(_signed(value))
        if len(values) > most:
            break
    return values


def _check_count(count: int) -> None:
    if count > MOST_VALUES:
        raise ExampleError(f"a feature with more than {MOST_VALUES} values")
