"""Images back from where they are, against plain reads of the files."""

from __future__ import annotations

import gzip
import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datas3_ray.sources import SampleError, fetch, parse_source
from datas3_ray.sources.fetch import GAP, Range, fetch_images, join_ranges

DATA = {name: os.urandom(300_000) for name in ("a.bin", "b.bin", "c.tgz")}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("fetch")
    memory = fsspec.filesystem("memory")
    for name, data in DATA.items():
        data = gzip.compress(data) if name.endswith("tgz") else data
        (folder / name).write_bytes(data)
        memory.pipe(f"/{folder.name}/{name}", data)
    yield [str(folder), f"file://{folder}", f"memory:///{folder.name}"]
    memory.rm(f"/{folder.name}", recursive=True)


def table(ranges: list[tuple[str, int | None, int | None]], **columns: Any) -> pa.Table:
    uris, offsets, lengths = zip(*ranges, strict=True) if ranges else ((), (), ())
    return pa.table(
        {
            "uri": pa.array(uris, pa.string()),
            "offset": pa.array(offsets, pa.int64()),
            "length": pa.array(lengths, pa.int64()),
            **columns,
        }
    )


_RANGES = st.tuples(
    st.integers(0, 2),
    st.sampled_from(sorted(DATA)),
    st.integers(0, 310_000),
    st.integers(0, 5_000) | st.integers(0, 310_000),
)


@given(ranges=st.lists(_RANGES, max_size=12), window=st.sampled_from([1, 3, 512]), chunk=st.integers(1, 20))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ranges_are_what_plain_reads_give(
    roots: list[str], ranges: list[tuple[int, str, int, int]], window: int, chunk: int
) -> None:
    rows = table([(f"{roots[root]}/{name}", offset, length) for root, name, offset, length in ranges])
    pieces = [rows.slice(at, chunk) for at in range(0, len(ranges), chunk)] or [rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "WINDOW_ROWS", window)
        found = list(fetch_images(pa.concat_tables(pieces)))
    assert len(found) == len(ranges)
    for (_, name, offset, length), data in zip(ranges, found, strict=True):
        whole = DATA[name][offset : offset + length]
        if len(whole) == length:
            assert data == whole
        else:
            assert isinstance(data, SampleError) and data.reason == "unreadable_file"
            assert f"{len(whole):,} of {length:,} bytes are there" in data.message


def test_whole_files(roots: list[str]) -> None:
    for root in roots:
        rows = table([(f"{root}/a.bin", None, None), (f"{root}/c.tgz", None, None), (f"{root}/b.bin", 5, None)])
        first, packed, rest = fetch_images(rows)
        assert first == DATA["a.bin"] and isinstance(packed, bytes) and gzip.decompress(packed) == DATA["c.tgz"]
        assert rest == DATA["b.bin"][5:]


def test_close_ranges_are_one_read_and_far_ones_are_not() -> None:
    offsets = [0, 100, 100 + 50 + GAP - 1, 10_000_000, 10_000_010]
    reads = join_ranges([(number, Range("a", offset, 50)) for number, offset in enumerate(offsets)])
    assert [(read.start, read.end, len(read.ranges)) for read in reads] == [
        (0, 100 + 50 + GAP - 1 + 50, 3),
        (10_000_000, 10_000_060, 2),
    ]
    assert len(join_ranges([(0, Range("a", 0, 9)), (1, Range("b", 9, 9))])) == 2
    steps = [Range("a", at * 50_000, 50_000) for at in range(1000)]
    assert max(read.end - read.start for read in join_ranges(list(enumerate(steps)))) <= 8 << 20


def test_a_compressed_shard_is_opened_once_for_rows_in_its_order(
    roots: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = fetch.open_tar

    def count(uri: str, options: Any) -> Any:
        opened.append(uri)
        return real(uri, options)

    monkeypatch.setattr(fetch, "open_tar", count)
    monkeypatch.setattr(fetch, "WINDOW_ROWS", 3)
    rows = [(f"{roots[0]}/c.tgz", 1000 * number, 500) for number in range(20)]
    assert list(fetch_images(table(rows))) == [DATA["c.tgz"][1000 * n : 1000 * n + 500] for n in range(20)]
    assert len(opened) == 1


def test_a_damaged_compressed_shard_gives_what_comes_before_the_damage(tmp_path: Path) -> None:
    data = os.urandom(300_000)
    packed = gzip.compress(data)
    (tmp_path / "cut.tar.gz").write_bytes(packed[:100_000])
    first, second, third = fetch_images(table([(str(tmp_path / "cut.tar.gz"), at, 100) for at in (0, 90_000, 200_000)]))
    assert (first, second) == (data[:100], data[90_000:90_100])
    assert isinstance(third, SampleError) and "ends too early" in third.message


def test_images_of_compressed_shards_are_found_again(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for number in range(5):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = 1000
            tar.addfile(info, io.BytesIO(bytes([number]) * 1000))
    (tmp_path / "0.tgz").write_bytes(buffer.getvalue())
    source = parse_source({"webdataset": str(tmp_path / "*.tgz")})
    assert source.ranged is False
    found = list(source.read(source.shards()[0]))
    rows = table([(sample.uri, sample.offset, sample.length) for sample in reversed(found)])  # type: ignore[union-attr]
    assert list(fetch_images(rows)) == [bytes([number]) * 1000 for number in (4, 3, 2, 1, 0)]


@pytest.mark.parametrize(
    ("uri", "offset", "length", "reason", "words"),
    [
        (None, None, None, "no_image", "store: bytes"),
        ("", 0, 5, "no_image", "store: bytes"),
        ("rows.parquet", 3, 500, "no_image", "'rows.parquet'.*store: bytes"),
        ("https://example.org/rows.parquet?key=1", 3, 500, "no_image", "inside the table"),
        ("gone.jpg", 0, 5, "unreadable_file", "'gone.jpg' is not there"),
        ("gone.jpg", 0, None, "unreadable_file", "'gone.jpg' is not there"),
        ("gone.tgz", 0, 5, "unreadable_file", "'gone.tgz' is not there"),
        (".", 0, 5, "unreadable_file", "'.' cannot be read: IsADirectory"),
        ("memory:///gone", 0, 5, "unreadable_file", "is not there"),
        ("nosuch://a/b", 0, 5, "unreadable_file", "Protocol not known"),
        ("a.bin", 0, 10**12, "too_large", "more than max_bytes"),
        ("a.bin", -1, 5, "bad_record", "no place in a file"),
        ("a.bin", 0, -5, "bad_record", "no place in a file"),
    ],
)
def test_rows_without_an_image_say_why_and_harm_no_neighbour(
    roots: list[str], monkeypatch: pytest.MonkeyPatch, uri: str, offset: int, length: int, reason: str, words: str
) -> None:
    monkeypatch.chdir(roots[0])
    before, found, after = fetch_images(table([("a.bin", 0, 9), (uri, offset, length), ("a.bin", 9, 9)]))
    assert (before, after) == (DATA["a.bin"][:9], DATA["a.bin"][9:18])
    assert isinstance(found, SampleError) and found.reason == reason
    assert re.search(words, found.message) and "\n" not in found.message


def test_bytes_in_the_row_come_first(roots: list[str]) -> None:
    rows = table([("gone", 0, 1), (f"{roots[0]}/a.bin", 0, 4)], image=pa.array([b"mine", None], pa.large_binary()))
    assert list(fetch_images(rows)) == [b"mine", DATA["a.bin"][:4]]
    assert list(fetch_images(pa.table({"image": [b"x"]}))) == [b"x"]
    assert list(fetch_images(table([]))) == []


def test_images_come_before_all_are_read(roots: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    real = fetch._pread
    monkeypatch.setattr(fetch, "_pread", lambda file, start, end: read.append(end - start) or real(file, start, end))
    monkeypatch.setattr(fetch, "WINDOW_BYTES", 100_000)
    images = fetch_images(table([(f"{roots[0]}/a.bin", 60_000 * (n % 5), 60_000) for n in range(50)]))
    assert next(images) == DATA["a.bin"][:60_000]
    assert sum(read) == 120_000


class Counting(MemoryFileSystem):
    """A store that counts its requests, of which the first ones fail."""

    protocol = "counting"
    requests: list[Any] = []
    failures = 0

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return MemoryFileSystem._strip_protocol(path.replace("counting://", "memory://"))

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> Any:
        Counting.requests.append((path, start, end))
        if len(Counting.requests) <= Counting.failures:
            raise OSError("503 slow down")
        return super().cat_file(path, start=start, end=end)


fsspec.register_implementation("counting", Counting, clobber=True)


@pytest.mark.parametrize("failures", [0, 1, 2, 100])
def test_requests_to_a_store_are_joined_and_tried_again(
    roots: list[str], monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(Counting, "requests", [])
    monkeypatch.setattr(Counting, "failures", failures)
    uri = roots[2].replace("memory", "counting") + "/a.bin"
    found = list(fetch_images(table([(uri, 1000 * number, 100) for number in range(30)])))
    if failures < 3:
        assert found == [DATA["a.bin"][1000 * n : 1000 * n + 100] for n in range(30)]
        assert len(Counting.requests) == 1 + failures
    else:
        assert len(Counting.requests) == 3 and all("503" in str(one) for one in found)


def test_a_server_without_ranges_is_told_from_a_short_file(roots: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda self, path, start=None, end=None, **_: DATA["a.bin"])
    (found,) = fetch_images(table([(f"{roots[2]}/a.bin", 10, 10)]))
    assert isinstance(found, SampleError) and "does not know byte ranges" in found.message


def test_keys_of_a_store_are_not_shown_to_web_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def refuse(uri: str, **options: Any) -> Any:
        seen[uri] = options
        raise RuntimeError(f"no {options}")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    uris = ["s3://bucket/a", "https://example.org/a"]
    found = list(fetch_images(table([(uri, 0, 5) for uri in uris]), {"secret": "open-sesame"}))
    assert seen == {uris[0]: {"secret": "open-sesame"}, uris[1]: {}}
    assert all(isinstance(one, SampleError) and "open-sesame" not in one.message for one in found)
