"""Parquet files with an image a row: where the image is, keys, the record, and what is not to be lost or believed."""

from __future__ import annotations

import pickle
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.sources import Reject, Sample, parse_source

IMAGE = b"\xff\xd8\xff image"


def read(folder: Path, table: pa.Table | bytes, **options: object) -> list[Any]:
    path = folder / "pool" / "part-0.parquet"
    path.parent.mkdir(exist_ok=True)
    if isinstance(table, bytes):
        path.write_bytes(table)
    else:
        pq.write_table(table, path)
    source = parse_source({"parquet": str(path), **options})
    (shard,) = source.shards()
    return list(source.read(shard))


def told(items: list[Sample | Reject]) -> list[str]:
    return [item.reason if isinstance(item, Reject) else item.key for item in items]


def test_bytes_keys_and_record(tmp_path: Path) -> None:
    table = pa.table({"n": [7, 8], "jpg": [IMAGE, IMAGE + b"2"], "caption": ["a", None], "thumb": [b"x", b"y"]})
    first, second = read(tmp_path, table)
    assert (first.id, first.key, first.image) == ("pool/part-0/000000000", "000000000", IMAGE)
    assert first.uri == str(tmp_path / "pool/part-0.parquet")
    assert (second.offset, second.length) == (1, len(IMAGE) + 1)
    assert first.members == {"json": {"n": 7, "caption": "a"}}
    assert second.members == {"json": {"n": 8, "caption": None}}


def test_a_column_that_none_of_the_tables_has(tmp_path: Path) -> None:
    table = pa.table({"jpg": [IMAGE], "site": ["A"]})
    columns = {"place": "row.stie.inner", "label": None}
    with pytest.raises(UsageError, match="columns: place: .* has no column 'stie'; it has .*mean 'site'"):
        read(tmp_path, table, columns=columns)
    pq.write_table(table.append_column("stie", pa.array(["B"])), tmp_path / "pool" / "part-1.parquet")
    source = parse_source({"parquet": str(tmp_path / "pool/*.parquet"), "columns": columns})
    assert len(source.shards()) == 2  # one of them has it


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(len(IMAGE))])
def test_every_type_of_bytes(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"bytes": pa.array([IMAGE, IMAGE], pa.binary()).cast(kind)})
    assert [item.image for item in read(tmp_path, table)] == [IMAGE, IMAGE]


@pytest.mark.parametrize(
    ("ids", "keys"),
    [
        (["x", "y/1"], ["x", "y/1"]),
        ([12, 13], ["12", "13"]),
        ([12.0, None], ["12", "bad_record"]),
        (["", "a"], ["bad_record", "a"]),
        (["a", "a"], ["a", "duplicate_key"]),
        ([[1], [2]], ["bad_record", "bad_record"]),
    ],
)
def test_ids(tmp_path: Path, ids: list[Any], keys: list[str]) -> None:
    table = pa.table({"sample": ids, "image": [IMAGE, IMAGE]})
    assert told(read(tmp_path, table, id="sample")) == keys


def test_huggingface_struct_with_bytes_or_a_path_beside(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "1.jpg").write_bytes(b"beside")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    values = [
        {"bytes": IMAGE, "path": "0.jpg"},
        {"bytes": None, "path": "1.jpg"},
        {"bytes": None, "path": "../secret.jpg"},
        {"bytes": None, "path": str(tmp_path / "secret.jpg")},
        {"bytes": None, "path": "missing.jpg"},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"", "path": None},
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    items = read(tmp_path, pa.table({"image": pa.array(values, kind)}))
    assert told(items) == [
        "000000000",
        "000000001",
        "bad_record",
        "bad_record",
        "unreadable_file",
        "no_image",
        "no_image",
        "empty_image",
    ]
    assert items[1].image == b"beside"
    assert items[1].uri == str(tmp_path / "pool/1.jpg")
    assert "leads out" in items[2].error
    assert items[2].offset == 2


def test_uris_and_ranges(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "pack.bin").write_bytes(b"0123456789")
    table = pa.table({"path": ["pack.bin", "pack.bin", "pack.bin"], "at": [2, 8, None], "n": [3, 5, None]})
    items = read(tmp_path, table, uri="path", offset="at", length="n")
    assert (items[0].image, items[0].offset, items[0].length) == (b"234", 2, 3)
    assert told(items)[1] == "unreadable_file"
    assert (items[2].image, items[2].offset, items[2].length) == (b"0123456789", 0, 10)


def test_uris_may_be_remote_but_not_leave_the_root(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/parquet-test/1.jpg", IMAGE)
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    names = [
        "memory://parquet-test/1.jpg",
        str(tmp_path / "secret.jpg"),
        f"file://{tmp_path}/secret.jpg",
        f"local://{tmp_path}/secret.jpg",
        f"simplecache::file://{tmp_path}/secret.jpg",
        "../secret.jpg",
        "",
        None,
    ]
    table = pa.table({"url": names})
    assert told(read(tmp_path, table)) == ["000000000", *["bad_record"] * 5, "no_image", "no_image"]
    items = read(tmp_path, table, root=str(tmp_path))
    assert items[1].image == b"secret"
    assert told(items)[3:6] == ["bad_record"] * 3


def test_detection_prefers_bytes_and_says_what_there_is(tmp_path: Path) -> None:
    table = pa.table({"url": ["http://x"], "PNG": [IMAGE]})
    assert read(tmp_path, table)[0].image == IMAGE
    with pytest.raises(UsageError, match="it has a, b: name one"):
        read(tmp_path, pa.table({"a": [1], "b": [2]}))
    with pytest.raises(UsageError, match="no column 'jgp'; it has jpg. Did you mean 'jpg'"):
        read(tmp_path, pa.table({"jpg": [IMAGE]}), image="jgp")
    with pytest.raises(UsageError, match="write `uri: jpg`"):
        read(tmp_path, pa.table({"jpg": ["a.jpg"]}), image="jpg")
    with pytest.raises(UsageError, match="set it, too"):
        read(tmp_path, pa.table({"jpg": [IMAGE], "o": [1]}), offset="o")


def test_ranged_is_known_from_the_recipe_or_the_first_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": [IMAGE], "link": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"url": ["a.jpg"]}), tmp_path / "b.parquet")
    assert parse_source({"parquet": "nowhere", "uri": "link"}).ranged
    assert not parse_source({"parquet": "nowhere", "image": "jpg"}).ranged
    assert not parse_source({"parquet": str(tmp_path / "a.parquet")}).ranged
    assert parse_source({"parquet": str(tmp_path / "b.parquet")}).ranged


def test_values_become_json(tmp_path: Path) -> None:
    moment = datetime(2020, 1, 2, 3, 4, 5, 678000, tzinfo=timezone.utc)
    columns = {
        "jpg": pa.array([IMAGE]),
        "ns": pa.array([1_577_934_245_678_000_123], pa.timestamp("ns")),
        "utc": pa.array([moment], pa.timestamp("us", "UTC")),
        "price": pa.array([Decimal("1.10")], pa.decimal128(5, 2)),
        "big": pa.array([Decimal("12345678901234567.89")], pa.decimal128(19, 2)),
        "took": pa.array([timedelta(seconds=90)]),
        "nan": pa.array([float("nan")]),
        "tags": pa.array([["a", None]]),
        "where": pa.array([{"site": "N", "raw": b"x", "at": [1.5]}]),
        "pairs": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        "none": pa.nulls(1),
        "kind": pa.array(["cat"]).dictionary_encode(),
    }
    (item,) = read(tmp_path, pa.table(columns))
    assert item.members["json"] == {
        "ns": "2020-01-02T03:04:05.678000",
        "utc": "2020-01-02T03:04:05.678000+00:00",
        "price": 1.1,
        "big": "12345678901234567.89",
        "took": 90.0,
        "nan": None,
        "tags": ["a", None],
        "where": {"site": "N", "at": [1.5]},
        "pairs": {"k": 1},
        "none": None,
        "kind": "cat",
    }


def test_one_bad_value_costs_one_row(tmp_path: Path) -> None:
    raw = pa.array([b"ok", b"\xff\xfe", b"fine"], pa.binary())
    text = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    items = read(tmp_path, pa.table({"jpg": [IMAGE] * 3, "text": text}))
    assert told(items) == ["000000000", "bad_record", "000000002"]
    assert "'text'" in items[1].error


def test_too_large_is_not_copied(tmp_path: Path) -> None:
    items = read(tmp_path, pa.table({"jpg": [IMAGE, b"x" * 99]}), max_bytes=50)
    assert told(items) == ["000000000", "too_large"]


def test_what_is_no_parquet(tmp_path: Path) -> None:
    assert told(read(tmp_path, b"not a table at all")) == ["not_a_table"]
    assert told(read(tmp_path, b"")) == ["not_a_table"]
    assert told(read(tmp_path, pa.table({"jpg": pa.array([], pa.binary())}))) == ["empty_shard"]
    path = tmp_path / "pool/part-0.parquet"
    pq.write_table(pa.table({"jpg": [bytes([i]) * 5000 for i in range(200)]}), path, compression="none")
    whole = path.read_bytes()
    assert told(read(tmp_path, whole[: len(whole) // 2])) == ["not_a_table"]


def test_damage_in_the_middle_keeps_the_rows_before(tmp_path: Path) -> None:
    path = tmp_path / "ok.parquet"
    images = [bytes([i % 251]) * 3000 for i in range(300)]
    pq.write_table(pa.table({"jpg": images}), path, row_group_size=100, compression="snappy", use_dictionary=False)
    place = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[place : place + 64] = b"\xee" * 64
    items = read(tmp_path, bytes(data))
    assert told(items)[-1] == "not_a_table"
    assert items[-1].key == ""
    assert 0 < len(items) - 1 <= 100
    assert items[-1].offset == len(items) - 1


def test_a_file_that_went_away_is_unreadable(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": [IMAGE]}), tmp_path / "a.parquet")
    source = parse_source({"parquet": str(tmp_path / "a.parquet")})
    (shard,) = source.shards()
    (tmp_path / "a.parquet").unlink()
    assert told(list(source.read(shard))) == ["unreadable_shard"]


def test_another_schema_in_a_later_file_is_that_files_reject(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": [IMAGE]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"other": [1]}), tmp_path / "b.parquet")
    source = parse_source({"parquet": str(tmp_path / "*.parquet")})
    first, second = source.shards()
    assert told(list(source.read(first))) == ["000000000"]
    assert told(list(source.read(second))) == ["not_a_table"]


def test_prefixes_clash_and_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a/x", "b/x"):
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(pa.table({"jpg": [IMAGE]}), tmp_path / folder / "0.parquet")
    spec = {"parquet": str(tmp_path / "*/x/*.parquet")}
    with pytest.raises(UsageError, match="id_folders: 2"):
        parse_source(spec).shards()
    shards = parse_source({**spec, "id_folders": 2, "id_prefix": "web/"}).shards()
    assert [shard.prefix for shard in shards] == ["web/a/x/0", "web/b/x/0"]


def test_remote_file_and_secrets(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": [IMAGE] * 200}), tmp_path / "a.parquet")
    fsspec.filesystem("memory").pipe("/parquet-test/a.parquet", (tmp_path / "a.parquet").read_bytes())
    source = pickle.loads(pickle.dumps(parse_source({"parquet": "memory://parquet-test/*.parquet"})))
    (shard,) = source.shards()
    items = list(source.read(shard))
    assert [item.key for item in items] == [f"{row:09d}" for row in range(200)]
    secret = parse_source({"parquet": "a.parquet", "storage_options": {"secret": "open-sesame"}})
    assert "open-sesame" not in repr(secret) + secret.describe()  # type: ignore[operator]


def test_unknown_key_has_a_hint() -> None:
    with pytest.raises(UsageError, match="unknown key 'imagee'"):
        parse_source({"parquet": "a", "imagee": "x"})


def test_columns_that_go_nowhere_are_not_read(tmp_path: Path) -> None:
    table = pa.table({"jpg": [IMAGE], "email": ["x"], "site": [{"a": 1}], "caption": ["c"]})
    (item,) = read(tmp_path, table, columns={"email": None})
    assert item.members["json"] == {"site": {"a": 1}, "caption": "c"}
    (item,) = read(tmp_path, table, columns={"meta": None, "part": "json.site.a"})
    assert item.members["json"] == {"site": {"a": 1}, "caption": "c"}
