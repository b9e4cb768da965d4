"""TFRecord files and the messages in them, against a writer of their own and hand-made bytes."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import tfrecords
from worlds.tfrecords import example, field, framed, varint

from datas3_ray.sources.crc32c import crc32c, masked_crc32c
from datas3_ray.sources.tf_example import (
    MOST_FEATURES,
    MOST_VALUES,
    ExampleError,
    Feature,
    byte_spans,
    first_text,
    numbers,
    parse_example,
)
from datas3_ray.sources.tfrecord import Record, RecordFileError, read_tfrecords


def read(data: bytes, max_bytes: int = 1000, verify: bool = True) -> tuple[list[Record], RecordFileError | None]:
    records = []
    try:
        for record in read_tfrecords(io.BytesIO(data), max_bytes, verify):
            records.append(record)
    except RecordFileError as error:
        return records, error
    return records, None


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_checksums(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum


@pytest.mark.parametrize("size", [1, 63, 64, 65, 79, 80, 527, 528, 4096, (1 << 18) - 1, (1 << 18) + 3, (1 << 18) + 777])
def test_checksums_of_every_length_are_those_of_a_loop(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    assert crc32c(data) == tfrecords.crc32c(data)
    assert crc32c(memoryview(data)) == crc32c(data)
    assert masked_crc32c(data).to_bytes(4, "little") == tfrecords.checksum(data)


def test_records_with_their_places() -> None:
    data = framed(b"one") + framed(b"") + framed(b"three" * 50)
    records, error = read(data)
    assert error is None
    assert [(record.data, record.intact) for record in records] == [(b"one", True), (b"", True), (b"three" * 50, True)]
    assert [record.offset for record in records] == [12, 31, 47]
    for record in records:
        assert data[record.offset : record.offset + record.length] == record.data


def test_the_file_stays_its_owner_s() -> None:
    file = io.BytesIO(framed(b"one") * 2)
    reader = read_tfrecords(file, 100)
    next(reader)
    del reader
    assert not file.closed
    assert len(list(read_tfrecords(io.BytesIO(file.getvalue()), 100))) == 2


def test_what_another_writer_wrote(tmp_path: Path) -> None:
    writer = pytest.importorskip("tensorboard.summary.writer.record_writer")
    with open(tmp_path / "events", "wb") as file:
        records = writer.RecordWriter(file)
        for text in (b"one", b"two" * 1000):
            records.write(text)
        records.flush()
    found, error = read((tmp_path / "events").read_bytes(), 5000)
    assert [record.data for record in found] == [b"one", b"two" * 1000] and error is None
    assert all(record.intact for record in found)


def test_a_damaged_record_is_told_and_reading_goes_on() -> None:
    data = bytearray(framed(b"one") + framed(b"two") + framed(b"three"))
    data[19 + 12] ^= 1  # the first byte of "two"
    records, error = read(bytes(data))
    assert [record.intact for record in records] == [True, False, True] and error is None
    records, error = read(bytes(data), verify=False)
    assert [record.data for record in records] == [b"one", b"uwo", b"three"] and error is None
    assert all(record.intact for record in records)


@pytest.mark.parametrize("verify", [True, False])
def test_after_a_damaged_length_nothing_is_believed(verify: bool) -> None:
    data = bytearray(framed(b"one") + framed(b"two") + framed(b"three"))
    data[19] ^= 1  # the length of "two"
    records, error = read(bytes(data), verify=verify)
    assert [record.data for record in records] == [b"one"]
    assert error is not None and (error.reason, error.offset) == ("truncated_shard", 19)
    assert "the length of the record at byte 19 has a wrong checksum" in str(error)


@pytest.mark.parametrize(("kept", "inside"), [(19 + 5, "length"), (19 + 13, "3 bytes"), (19 + 17, "3 bytes")])
def test_files_that_are_cut_off(kept: int, inside: str) -> None:
    records, error = read((framed(b"one") + framed(b"two"))[:kept])
    assert [record.data for record in records] == [b"one"]
    assert error is not None and (error.reason, error.offset) == ("truncated_shard", 19) and inside in str(error)


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"", "empty_shard", "empty"),
        (b"short", "not_a_table", "no TFRecord file"),
        (b"a text of more than twelve bytes", "not_a_table", "no TFRecord file"),
        (gzip.compress(framed(b"one") * 9), "not_a_table", "compressed with gzip"),
    ],
)
def test_what_is_no_tfrecord_file(data: bytes, reason: str, words: str) -> None:
    records, error = read(data)
    assert not records and error is not None
    assert error.reason == reason and words in str(error) and error.offset == 0


class Counting(io.BytesIO):
    """Counts the bytes that are asked of it."""

    asked = 0

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self.asked += count
        return count


def test_a_record_beyond_the_limit_is_passed_over_unread() -> None:
    size = (9_000_000).to_bytes(8, "little")
    big = size + tfrecords.checksum(size) + bytes(9_000_004)
    file = Counting(framed(b"one") + big + framed(b"two"))
    records = list(read_tfrecords(file, max_bytes=100))
    assert [(record.length, record.data) for record in records] == [(3, b"one"), (9_000_000, None), (3, b"two")]
    assert file.asked < 3_000_000


@pytest.mark.parametrize("length", [5000, 1 << 40, 1 << 62, (1 << 64) - 1])
def test_a_length_that_leads_beyond_the_end(tmp_path: Path, length: int) -> None:
    size = length.to_bytes(8, "little")
    data = framed(b"one") + size + tfrecords.checksum(size) + bytes(100)
    path = tmp_path / "file"
    path.write_bytes(data)
    with open(path, "rb", buffering=0) as raw:
        for file in (io.BytesIO(data), raw):
            reader = read_tfrecords(file, 1000)  # type: ignore[arg-type]
            assert next(reader).data == b"one"
            with pytest.raises(RecordFileError) as error:
                list(reader)
            assert error.value.reason == "truncated_shard"


def test_a_store_that_fails_is_no_damage() -> None:
    class Failing(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            raise TimeoutError("no answer")

    with pytest.raises(RecordFileError, match="no answer") as error:
        list(read_tfrecords(Failing(framed(b"one")), 100))
    assert error.value.reason == "unreadable_shard"


FEATURES: dict[str, list[Any]] = {
    "photo": [b"\xff\xd8 bytes", b"another"],
    "ratio": [0.5, -2.25],
    "count": [3, -1, 1 << 40, 0],
    "nothing": [],
}


@pytest.mark.parametrize("packed", [True, False])
def test_features_packed_or_not(packed: bool) -> None:
    data = example(FEATURES, packed)
    features = parse_example(data)
    spans = byte_spans(data, features["photo"])
    assert [data[span.start : span.end] for span in spans] == FEATURES["photo"]
    assert numbers(data, features["ratio"]) == [0.5, -2.25]
    assert numbers(data, features["count"]) == [3, -1, 1 << 40, 0]
    assert features["nothing"] == Feature()
    assert numbers(data, features["nothing"]) == [] and byte_spans(data, features["nothing"]) == []
    # A feature of another kind, or none, has no values.
    assert byte_spans(data, features["ratio"]) == [] and numbers(data, features["photo"]) == []
    assert byte_spans(data, None) == [] and numbers(data, None) == []


def test_texts() -> None:
    data = example({"name": [b" Acer "], "empty": [b""], "number": [12], "bad": [b"\xff"]})
    features = parse_example(data)
    assert first_text(data, features, "missing", "empty", "name") == "Acer"
    assert first_text(data, features, "number") == "12"
    assert first_text(data, features, "empty") is None
    with pytest.raises(ExampleError, match="'bad' is no text"):
        first_text(data, features, "bad")


def entry(name: bytes, value: bytes) -> bytes:
    return field(1, field(1, name) + field(2, value))


def test_what_protobuf_allows() -> None:
    one, two = tfrecords.feature([1]), tfrecords.feature([2])
    # Unknown fields of every kind are passed over, groups of features are one, the last entry of a name counts.
    unknown = b"\x78\x05" + b"\x7d" + bytes(4) + b"\x79" + bytes(8) + field(15, b"x")
    data = unknown + field(1, entry(b"a", one) + unknown + entry(b"b", one)) + field(1, entry(b"b", two + unknown))
    features = parse_example(data)
    assert {name: numbers(data, feature) for name, feature in features.items()} == {"a": [1], "b": [2]}
    # Lists of one kind are joined, of several kinds the last counts, and packed and single values mix.
    data = field(1, entry(b"a", one + two) + entry(b"b", tfrecords.feature([b"x"]) + two))
    features = parse_example(data)
    assert numbers(data, features["a"]) == [1, 2] and features["b"].kind == "int64"
    mixed = field(3, b"\x08\x07" + field(1, varint(8) + varint(9)))
    data = field(1, entry(b"a", mixed))
    assert numbers(data, parse_example(data)["a"]) == [7, 8, 9]
    assert parse_example(b"") == {}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x0a\x7f", "leads beyond"),
        (b"\x0a", "cut off"),
        (b"\x0a" + b"\xff" * 12, "too long"),
        (b"\x0b", "unknown kind"),
        (b"\x7d\x00", "leads beyond"),
        (field(1, b"\x0a\x05\x0a"), "leads beyond"),
        (field(1, b"".join(entry(varint(n), b"") for n in range(MOST_FEATURES + 1))), "features"),
    ],
)
def test_what_is_no_example(data: bytes, words: str) -> None:
    with pytest.raises(ExampleError, match=words):
        parse_example(data)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("values", [[0.5] * (MOST_VALUES + 1), [7] * (MOST_VALUES + 1)])
def test_more_values_than_any_feature_has(values: list[Any], packed: bool) -> None:
    data = example({"a": values}, packed)
    feature = parse_example(data)["a"]
    with pytest.raises(ExampleError, match="values"):
        numbers(data, feature)


def test_lists_that_do_not_come_out_even() -> None:
    floats = field(1, entry(b"a", field(2, field(1, bytes(6)))))
    with pytest.raises(ExampleError, match="no multiple of 4"):
        numbers(floats, parse_example(floats)["a"])
    whole = field(1, entry(b"a", field(3, field(1, b"\x80"))))
    with pytest.raises(ExampleError, match="cut off"):
        numbers(whole, parse_example(whole)["a"])


def test_damage_never_raises_anything_else() -> None:
    rng = np.random.default_rng(0)
    whole = example(FEATURES)
    failed = 0
    for _ in range(3000):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), int(rng.integers(1, 4))):
            data[at] = rng.integers(256)
        piece = bytes(data[: rng.integers(1, len(data) + 1)])
        try:
            for feature in parse_example(piece).values():
                spans = byte_spans(piece, feature)
                assert all(0 <= span.start <= span.end <= len(piece) for span in spans)
                numbers(piece, feature)
        except ExampleError:
            failed += 1
    assert 1000 < failed < 3000
