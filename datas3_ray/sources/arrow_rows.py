"""Rows of Arrow tables as samples: where a row's image is, and the rest of the row as plain JSON values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa

from datas3_ray.errors import UsageError, did_you_mean
from datas3_ray.sources.arrow_tables import TableError
from datas3_ray.sources.base import Reject, Sample, SampleError, Shard
from datas3_ray.sources.storage import PassingError

BATCH_ROWS = 64
"""Rows of a table with images that are in memory at once."""
KEY_DIGITS = 9
"""Digits of a row's number where that is its key."""

_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes")
_URIS = ("uri", "url", "path", "image_url")
_DROPPED = object()  # a value that JSON has no place for

ReadFile = Callable[[str, "int | None", "int | None"], "tuple[str, int, bytes]"]
"""What fetches the file that a row names, or a range of it: gives its uri, the offset and the bytes."""


@dataclass(frozen=True)
class Layout:
    """Which columns of a table have which part of a row; ``record`` are all the others that JSON can hold."""

    image: str | None = None
    uri: str | None = None
    id: str | None = None
    offset: str | None = None
    length: str | None = None
    record: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Every column that has to be read."""
        given = [self.image, self.uri, self.id, self.offset, self.length, *self.record]
        return list(dict.fromkeys(name for name in given if name is not None))


def find_layout(schema: pa.Schema, wanted: Layout, where: str) -> Layout:
    """The columns of a table with images: those ``wanted`` by name, and the image's by its usual names.

    Raises UsageError for a column that is missing or of a type that cannot be meant, and where no image is found.

    >>> schema = pa.schema([("jpg", pa.binary()), ("caption", pa.string()), ("thumb", pa.binary())])
    >>> find_layout(schema, Layout(), "a.parquet")
    Layout(image='jpg', uri=None, id=None, offset=None, length=None, record=('caption',))
    """
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise UsageError(f"{where}: two columns are named {twice[0]!r}; rename one.")
    for option in ("image", "uri", "id", "offset", "length"):
        name = getattr(wanted, option)
        if name is not None and name not in schema.names:
            hint = did_you_mean(name, schema.names)
            raise UsageError(f"{where}: {option}: there is no column {name!r}; it has {', '.join(schema.names)}.{hint}")
    found = _with_image(schema, wanted, where)
    if (found.offset or found.length) and not found.uri:
        raise UsageError(f"{where}: offset and length are ranges of the files that `uri:` names; set it, too.")
    own = {found.image, found.uri, found.offset, found.length}
    record = tuple(
        field.name
        for field in schema
        if (field.name not in own or field.name == found.uri) and not is_binary(field.type)
    )
    return replace(found, record=record)


def _with_image(schema: pa.Schema, wanted: Layout, where: str) -> Layout:
    if wanted.image and wanted.uri:
        raise UsageError(f"{where}: both `image: {wanted.image}` and `uri: {wanted.uri}` are given; images have one.")
    if wanted.image:
        kind = schema.field(wanted.image).type
        if not is_image(kind):
            hint = f"; write `uri: {wanted.image}` if it holds the addresses of files" if is_text(kind) else ""
            raise UsageError(f"{where}: image: the column {wanted.image!r} is {kind}, not the bytes of files{hint}.")
        return wanted
    if wanted.uri:
        kind = schema.field(wanted.uri).type
        if not is_text(kind):
            raise UsageError(f"{where}: uri: the column {wanted.uri!r} is {kind}, not text.")
        return wanted
    image = _usual(schema, _IMAGES, is_image)
    uri = None if image else _usual(schema, _URIS, is_text)
    if image is None and uri is None:
        raise UsageError(
            f"{where}: none of its columns is known to hold images ({', '.join(_IMAGES)}) or their addresses "
            f"({', '.join(_URIS)}); it has {', '.join(schema.names) or 'none'}: name one with `image:` or `uri:`."
        )
    return replace(wanted, image=image, uri=uri)


def _usual(schema: pa.Schema, usual: Sequence[str], fits: Callable[[pa.DataType], bool]) -> str | None:
    named = {name.lower(): name for name in reversed(schema.names)}
    return next((named[name] for name in usual if name in named and fits(schema.field(named[name]).type)), None)


def is_binary(kind: pa.DataType) -> bool:
    """Whether a type is bytes of whatever length."""
    types = pa.types
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is text of whatever layout."""
    types = pa.types
    if types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_image(kind: pa.DataType) -> bool:
    """Whether a type is the bytes of a file, or the struct of bytes and path that Hugging Face writes."""
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and (is_binary(kind.field(at).type) or pa.types.is_null(kind.field(at).type))
    return is_binary(kind)


def samples(
    shard: Shard,
    batches: Iterable[pa.RecordBatch],
    layout: Layout,
    read_file: ReadFile,
    max_bytes: int,
    finish: Callable[[Sample], Sample] | None = None,
) -> Iterator[Sample | Reject]:
    """The rows of a table's batches as samples, and a Reject in the place of each that cannot be one.

    ``finish`` completes a sample; what it raises as SampleError is the row's Reject. The key of a row is the text of
    its id, else its number in the shard, which is also its offset where its bytes are in the table. Raises TableError
    where a store fails that a row's file is in.
    """
    seen: set[str] | None = set() if layout.id else None
    first = 0
    for batch in batches:
        for start in range(0, len(batch), BATCH_ROWS):
            part = batch.slice(start, BATCH_ROWS)
            rows = records(part, layout.record)
            images = part.column(layout.image) if layout.image else None
            for index, record in enumerate(rows):
                row = first + start + index
                key = f"{row:0{KEY_DIGITS}d}"
                try:
                    if layout.id:
                        key = _key(part, layout.id, index)
                    if isinstance(record, SampleError):
                        raise record
                    if images is not None:
                        uri, offset, data = _inside(images, index, row, shard.uri, read_file, max_bytes)
                    else:
                        uri, offset, data = _elsewhere(part, layout, index, read_file)
                    if not data:
                        raise SampleError("empty_image", f"the image of row {row} has no bytes")
                    if seen is not None and key in seen:
                        raise SampleError("duplicate_key", f"the id {key!r} came before in this file")
                    sample = Sample(f"{shard.prefix}/{key}", key, uri, offset, len(data), data, {"json": record})
                    made: Sample | Reject = finish(sample) if finish else sample
                except PassingError as error:  # the shard is to be read again another time
                    raise TableError("unreadable_shard", error.message) from None
                except SampleError as error:
                    made = Reject(shard.uri, row, error.reason, error.message, key)
                if seen is not None:
                    seen.add(key)
                yield made
        first += len(batch)


def _key(batch: pa.RecordBatch, name: str, index: int) -> str:
    value = _DROPPED
    try:
        value = plain(batch.column(name)[index].as_py())
    except Exception as error:  # text that is not UTF-8, a time beyond Python's
        raise SampleError("bad_record", f"the id in column {name!r} cannot be read: {error}") from None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # what pandas makes of whole numbers beside missing ones
    if value is None or value is _DROPPED or isinstance(value, (dict, list)) or value == "":
        shown = "missing" if value is None or value == "" else "neither text nor a number"
        raise SampleError("bad_record", f"the id in column {name!r} is {shown}")
    return str(value)


def _inside(
    images: pa.Array, index: int, row: int, uri: str, read_file: ReadFile, max_bytes: int
) -> tuple[str, int, bytes]:
    """The image whose bytes, or else whose path, are in the column."""
    value = images[index]
    path = None
    if pa.types.is_struct(images.type) and value.is_valid:
        path = value["path"].as_py() if images.type.get_field_index("path") >= 0 else None
        value = value["bytes"]
    if not value.is_valid:
        if path:
            return read_file(path, None, None)
        raise SampleError("no_image", f"row {row} has neither the bytes of an image nor a path")
    buffer = value.as_buffer()
    if buffer.size > max_bytes:
        raise SampleError("too_large", f"the image of row {row} has {buffer.size} bytes, more than {max_bytes}")
    return uri, row, buffer.to_pybytes()


def _elsewhere(batch: pa.RecordBatch, layout: Layout, index: int, read_file: ReadFile) -> tuple[str, int, bytes]:
    """The image whose file is named by the row."""
    try:
        uri = batch.column(layout.uri)[index].as_py()
    except UnicodeDecodeError:
        raise SampleError("bad_record", f"the address in column {layout.uri!r} is not UTF-8") from None
    if uri is None or not uri.strip():
        raise SampleError("no_image", f"the address in column {layout.uri!r} is missing")
    offset = _number(batch, layout.offset, index)
    length = _number(batch, layout.length, index)
    if length is None and offset is not None:
        raise SampleError("bad_record", f"the range at {offset} of {uri!r} has no length")
    return read_file(uri, offset, length)


def _number(batch: pa.RecordBatch, name: str | None, index: int) -> int | None:
    if name is None:
        return None
    value = batch.column(name)[index].as_py()
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SampleError("bad_record", f"column {name!r} has {value!r}, which is no place in a file")
    return value


def records(batch: pa.RecordBatch, names: Sequence[str]) -> list[dict[str, Any] | SampleError]:
    """The rows of a batch as mappings of plain JSON values; a SampleError for a row that has none.

    >>> batch = pa.record_batch({"when": [date(2020, 1, 2)], "area": [math.nan], "box": [{"n": 1, "mask": b"x"}]})
    >>> records(batch, ["when", "area", "box"])
    [{'when': '2020-01-02', 'area': None, 'box': {'n': 1}}]
    """
    rows: list[dict[str, Any] | SampleError] = [{} for _ in range(len(batch))]
    for name in names:
        for index, value in enumerate(_values(batch.column(name), name)):
            row = rows[index]
            if isinstance(value, SampleError):
                rows[index] = value
            elif value is not _DROPPED and isinstance(row, dict):
                row[name] = value
    return rows


def _values(column: pa.Array, name: str) -> list[Any]:
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    try:
        column = column.cast(_in_microseconds(column.type), safe=False)
        return [plain(value) for value in column.to_pylist()]
    except Exception:  # one bad value in the column: find the rows that have it
        return [_value(column, index, name) for index in range(len(column))]


def _value(column: pa.Array, index: int, name: str) -> Any:
    try:
        return plain(column[index].as_py())
    except Exception as error:  # text that is not UTF-8, a time beyond Python's, an unknown time zone
        return SampleError("bad_record", f"column {name!r} has a value that cannot be read: {error}")


def _in_microseconds(kind: pa.DataType) -> pa.DataType:
    """The same type with times no finer than Python's."""
    types = pa.types
    if types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if types.is_time64(kind) and kind.unit == "ns":
        return pa.time64("us")
    if types.is_struct(kind):
        return pa.struct([field.with_type(_in_microseconds(field.type)) for field in kind])
    if types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_in_microseconds(kind.value_type)))
    return kind


def plain(value: Any) -> Any:
    """A Python value of Arrow as JSON has it: times as ISO 8601, durations in seconds, NaN and infinities as None.

    Decimals are numbers where a float holds them exactly as written, else text. Bytes are left out.

    >>> from datetime import datetime
    >>> plain([Decimal("1.10"), Decimal("0.12345678901234567890"), datetime(2020, 1, 2, 3), timedelta(minutes=1)])
    [1.1, '0.12345678901234567890', '2020-01-02T03:00:00', 60.0]
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return _without_dropped((str(key), plain(inner)) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(entry, tuple) for entry in value):  # a map, which Arrow gives as pairs
            return _without_dropped((str(key), plain(inner)) for key, inner in value)
        return [inner for inner in map(plain, value) if inner is not _DROPPED]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _DROPPED
    if isinstance(value, (date, time)):  # datetime is a date
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return _decimal(value)
    return str(value)


def _without_dropped(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in pairs if value is not _DROPPED}


def _decimal(value: Decimal) -> int | float | str:
    if value == value.to_integral_value() and value.as_tuple().exponent == 0:
        return int(value)
    return float(value) if Decimal(repr(float(value))) == value else str(value)
