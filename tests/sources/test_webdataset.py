"""The tar reader against Python's tarfile, and WebDataset grouping and rejects."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import tarfile
import tracemalloc
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datas3_ray.errors import UsageError
from datas3_ray.sources import REASONS, Reject, Sample, Shard, parse_source
from datas3_ray.sources.gunzip import GunzipFile, GzipError
from datas3_ray.sources.tarfile_reader import TarError, read_tar
from datas3_ray.sources.webdataset import WebDataset, split_name

Members = Sequence[tuple[str, bytes]]
IMAGE = b"\xff\xd8\xff image"


def shared_shards() -> list[Path]:
    folder = Path(os.environ.get("DATAS3_SHARED_DATA", Path(__file__).parent / "../../../shared/data"))
    return sorted(folder.glob("*/*.tar"))


def pack(members: Members, format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def document(**values: object) -> bytes:
    return json.dumps(values).encode()


def read(folder: Path, data: bytes, **options: object) -> list[Sample | Reject]:
    path = folder / "pool" / "00000.tar"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    source = parse_source({"webdataset": str(path), **options})
    (shard,) = source.shards()
    return list(source.read(shard))


def reasons(items: list[Sample | Reject]) -> list[str]:
    return [item.reason if isinstance(item, Reject) else item.key for item in items]


# ------------------------------------------------------------------------------------------------------- tar reader

_NAME = st.text(
    st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20
)
_PATH = st.lists(_NAME, min_size=1, max_size=12).map("/".join).filter(lambda name: not name.endswith("/"))
_KIND = st.sampled_from([tarfile.REGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])


@given(
    entries=st.lists(st.tuples(_PATH, st.binary(max_size=1200), _KIND), max_size=6),
    format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
@settings(max_examples=150, deadline=None)
def test_reads_what_tarfile_reads(entries: list[tuple[str, bytes, bytes]], format: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data, kind in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            if info.isreg():
                info.size = len(data)
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = name * 3
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(fileobj=io.BytesIO(buffer.getvalue())) as tar:
        expected = [(m.name, m.offset_data, m.size, tar.extractfile(m).read()) for m in tar if m.isreg()]  # type: ignore[union-attr]
    members = [m for m in read_tar(io.BytesIO(buffer.getvalue())) if not m.link]
    got = [(m.name, m.offset, m.size, m.data) for m in members]
    assert got == expected
    assert all(buffer.getvalue()[offset : offset + size] == content for _, offset, size, content in got)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_damage_never_raises_anything_but_tar_error(data: st.DataObject) -> None:
    tar = bytearray(pack([("a" * 120 + ".jpg", IMAGE), ("b.jpg", b"x" * 700), ("c.json", b"{}")], tarfile.PAX_FORMAT))
    for _ in range(data.draw(st.integers(1, 4))):
        tar[data.draw(st.integers(0, len(tar) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(tar)))
    try:
        for member in read_tar(io.BytesIO(bytes(tar[:cut]))):
            assert member.data == tar[member.offset : member.offset + member.size]
    except TarError as error:
        assert error.reason in REASONS


def test_ustar_name_prefix() -> None:
    name = "/".join(["folder" * 5] * 4) + "/image.jpg"
    tar = pack([(name, IMAGE)], tarfile.USTAR_FORMAT)
    assert tar[345:350] == b"folde"
    assert [member.name for member in read_tar(io.BytesIO(tar))] == [name]


def test_old_gnu_headers_keep_times_where_ustar_has_its_prefix() -> None:
    header = bytearray(pack([("a.jpg", b"")])[:512])
    header[345:356] = b"14000000000"
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    assert [member.name for member in read_tar(io.BytesIO(bytes(header) + bytes(1024)))] == ["a.jpg"]


def test_pre_posix_files_and_directories_differ_by_the_slash() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("folder.jpg/", "file.jpg"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.AREGTYPE
            tar.addfile(info)
    assert [member.name for member in read_tar(io.BytesIO(buffer.getvalue()))] == ["file.jpg"]


def test_sizes_in_base_256_and_in_pax_records() -> None:
    header = bytearray(pack([("a.jpg", IMAGE)])[:512])
    header[124:136] = b"\x80" + len(IMAGE).to_bytes(11, "big")
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    tar = bytes(header) + IMAGE.ljust(512, b"\0") + bytes(1024)
    assert [member.data for member in read_tar(io.BytesIO(tar))] == [IMAGE]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as pax:
        info = tarfile.TarInfo("a.jpg")
        info.pax_headers = {"size": str(len(IMAGE))}
        pax.addfile(info)  # size 0 in the header itself
    raw = buffer.getvalue()[: 3 * 512] + IMAGE.ljust(512, b"\0") + bytes(1024)
    assert [member.data for member in read_tar(io.BytesIO(raw))] == [IMAGE]


def test_global_pax_path_holds_until_a_member_says_otherwise() -> None:
    buffer = io.BytesIO()
    headers = {"path": "everything.jpg", "comment": "x"}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers) as tar:
        for name in ("a.jpg", "b" * 150 + ".jpg"):
            tar.addfile(tarfile.TarInfo(name))
    names = [member.name for member in read_tar(io.BytesIO(buffer.getvalue()))]
    assert names == ["everything.jpg", "b" * 150 + ".jpg"]


def test_names_that_are_not_utf8_stay_distinct_and_printable() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for name in ("café.jpg", "cafè.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    assert [member.name for member in read_tar(io.BytesIO(buffer.getvalue()))] == [r"caf\xe9.jpg", r"caf\xe8.jpg"]


def test_archives_put_one_after_the_other_are_read_to_the_end() -> None:
    tar = pack([("a.jpg", IMAGE)]) + pack([("b.jpg", IMAGE)])
    assert [member.name for member in read_tar(io.BytesIO(tar))] == ["a.jpg", "b.jpg"]
    assert [member.name for member in read_tar(io.BytesIO(pack([("a.jpg", IMAGE)]) + b"rubbish" * 200))] == ["a.jpg"]


def test_a_name_of_a_gigabyte_is_damage_and_not_read() -> None:
    header = bytearray(pack([("a" * 200, IMAGE)])[:512])
    header[124:136] = b"%011o\0" % (1 << 30)
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(TarError, match="1073741824 bytes"):
        list(read_tar(io.BytesIO(bytes(header))))


class _Counting(io.BytesIO):
    taken = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data


def test_unwanted_members_are_skipped_without_reading_them() -> None:
    file = _Counting(pack([("a.bin", bytes(30_000_000)), ("b.jpg", IMAGE)]))
    members = list(read_tar(file, lambda name, size: name == "b.jpg"))
    assert [(member.name, member.data) for member in members] == [("a.bin", None), ("b.jpg", IMAGE)]
    assert file.taken < 10_000_000


def test_blocks_that_come_in_small_pieces() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(7)

    names = ["a.jpg", "b" * 300 + ".jpg"]
    tar = pack([(name, IMAGE * 100) for name in names])
    assert [(member.name, member.data) for member in read_tar(Slow(tar))] == [(name, IMAGE * 100) for name in names]


# --------------------------------------------------------------------------------------------------------- grouping


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0001.jpg", ("0001", "jpg")),
        ("a.b/0001.JPG", ("a.b/0001", "jpg")),
        ("../../etc/x.png", ("../../etc/x", "png")),
        ("/abs/x.png", ("/abs/x", "png")),
        ("./x.seg.png", ("./x", "seg.png")),
        ("README", None),
        (".DS_Store", None),
        ("a/._0001.jpg", None),
        ("dot.", None),
    ],
)
def test_split_name(name: str, expected: tuple[str, str] | None) -> None:
    assert split_name(name) == expected


def test_samples_carry_their_members_and_where_their_bytes_are(tmp_path: Path) -> None:
    members = [
        ("x/1.JSON", document(label="cat")),
        ("x/._1.jpg", b"resource fork"),
        ("x/1.jpg", IMAGE),
        ("x/1.png", b"a second image"),
        ("x/1.txt", "a cät".encode()),
        ("x/1.cls", b"3\n"),
        ("x/1.seg.npy", b"ignored"),
        ("x/2.webp", IMAGE),
    ]
    tar = pack(members)
    first, second = read(tmp_path, tar)
    assert isinstance(first, Sample) and isinstance(second, Sample)
    assert first.id == "pool/00000/x/1" and first.key == "x/1" and first.uri == str(tmp_path / "pool/00000.tar")
    assert first.members == {"json": {"label": "cat"}, "txt": "a cät", "cls": "3\n"}
    assert first.image == IMAGE == tar[first.offset : first.offset + first.length]
    assert second.members == {} and second.image == IMAGE


def test_every_reject_has_its_reason_and_drops_no_neighbour(tmp_path: Path) -> None:
    members = [
        ("1.jpg", IMAGE),
        ("2.json", b"{}"),  # no_image
        ("3.jpg", b""),  # empty_image
        ("4.jpg", IMAGE),
        ("4.json", b"[1]"),  # bad_json: not an object
        ("5.jpg", IMAGE),
        ("5.json", b"{'a': 1}"),  # bad_json: not JSON
        ("6.jpg", IMAGE),
        ("6.txt", b"caf\xe9"),  # bad_text
        ("7.jpg", IMAGE),
        ("1.jpg", IMAGE),  # duplicate_key
        ("8.jpg", IMAGE),
        ("8.jpg", IMAGE),  # duplicate_key, right behind
        ("9.jpg", b"x" * 101),  # too_large
        ("10.jpg", IMAGE),
        ("10.json", b'{"a":"' + b"x" * 101 + b'"}'),  # too_large
        ("11.jpg", IMAGE),
        ("11.json", b"[" * 50_000),  # ignored: too large too
        ("12.jpg", IMAGE),
    ]
    items = read(tmp_path, pack(members), max_bytes=100)
    expected = ["1", "no_image", "empty_image", "bad_json", "bad_json", "bad_text", "7", "duplicate_key", "8"]
    expected += ["duplicate_key", "too_large", "too_large", "too_large", "12"]
    assert reasons(items) == expected
    rejects = [item for item in items if isinstance(item, Reject)]
    assert [reject.key for reject in rejects] == ["2", "3", "4", "5", "6", "1", "8", "9", "10", "11"]
    assert all(reject.reason in REASONS and reject.error and reject.offset for reject in rejects)


def test_json_oddities(tmp_path: Path) -> None:
    members = [
        ("1.jpg", IMAGE),
        ("1.json", b'\xef\xbb\xbf{"a": NaN, "b": -Infinity, "c": 1}'),
        ("2.jpg", IMAGE),
        ("2.json", b"[" * 100_000),
        ("3.jpg", IMAGE),
        ("3.json", b'{"n": ' + b"9" * 10_000 + b"}"),
    ]
    first, *rest = read(tmp_path, pack(members))
    assert isinstance(first, Sample) and first.members["json"] == {"a": None, "b": None, "c": 1}
    assert reasons(rest) == ["bad_json", "bad_json"]


def test_links_are_rejected_and_cost_no_row_unseen(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, target in (("a.jpg", ""), ("b.jpg", "a.jpg"), ("c.jpg", ""), ("c.json", "a.json"), ("d.md", "a.jpg")):
            info = tarfile.TarInfo(name)
            if target:
                info.type, info.linkname = tarfile.LNKTYPE if name < "c" else tarfile.SYMTYPE, target
            else:
                info.size = len(IMAGE)
            tar.addfile(info, io.BytesIO(IMAGE))
    found = read(tmp_path, buffer.getvalue())
    assert reasons(found) == ["a", "link_member", "link_member"]
    assert isinstance(found[1], Reject) and found[1].key == "b" and "--hard-dereference" in found[1].error


def test_sparse_members_are_rejected_by_name(tmp_path: Path) -> None:
    header = bytearray(pack([("a.jpg", IMAGE)])[:512])
    header[156:157] = b"S"
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    tar = bytes(header) + bytes(512) + pack([("b.jpg", IMAGE)])
    assert reasons(read(tmp_path, tar)) == ["sparse_member", "b"]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_cut_at_every_record_keeps_the_rows_before_and_gives_one_reject(tmp_path: Path, format: int) -> None:
    long = "" if format == tarfile.USTAR_FORMAT else "k" * 130
    members = []
    for number in range(4):
        members += [(f"{long}{number}.jpg", b"x" * 700), (f"{long}{number}.json", document(n=number))]
    whole = pack(members, format)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        ends = {m.name: m.offset_data + -(-m.size // 512) * 512 for m in tar}
    last = max(ends.values())
    for cut in range(0, len(whole), 512):
        items = read(tmp_path, whole[:cut])
        rejects = [item for item in items if isinstance(item, Reject)]
        kept = [item for item in items if isinstance(item, Sample)]
        if cut > last:  # the end mark, or one half of it, is there
            assert not rejects and len(kept) == 4
            continue
        assert len(rejects) == 1
        assert rejects[0].reason == ("truncated_shard" if cut else "empty_shard")
        # A sample is kept when the tar went on with another key's member; the last complete one may have lost a member.
        complete = sum(ends[f"{long}{number}.json"] <= cut for number in range(4))
        assert complete - 1 <= len(kept) <= complete
        assert [item.members["json"]["n"] for item in kept] == list(range(len(kept)))


def test_a_cut_at_every_byte_never_gives_a_damaged_sample(tmp_path: Path) -> None:
    whole = pack([("1.jpg", IMAGE), ("1.txt", b"one"), ("2.jpg", IMAGE), ("2.txt", b"two")])
    for cut in range(1, 4608, 37):
        for item in read(tmp_path, whole[:cut]):
            assert isinstance(item, Reject) or (item.image == IMAGE and item.members["txt"] in ("one", "two"))


def test_a_damaged_header_ends_the_shard_and_says_where(tmp_path: Path) -> None:
    tar = bytearray(pack([("1.jpg", IMAGE), ("2.jpg", IMAGE), ("3.jpg", IMAGE)]))
    tar[2 * 1024 + 5] ^= 0xFF  # in the third header
    items = read(tmp_path, bytes(tar))
    assert reasons(items) == ["1", "truncated_shard"]
    assert isinstance(items[-1], Reject) and items[-1].offset == 2048 and items[-1].key == "2"
    assert "checksum" in items[-1].error


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"", "empty_shard", "empty"),
        (bytes(10_240), "empty_shard", "no member"),
        (pack([]), "empty_shard", "no member"),
        (pack([("README", b"hello")]), "empty_shard", "no member"),
        (b"<!DOCTYPE html><html>" * 100, "not_a_tar", "DOCTYPE"),
        (b"short", "not_a_tar", "5 bytes"),
        (gzip.compress(pack([("1.jpg", os.urandom(2000))])), "not_a_tar", "gzip"),
    ],
)
def test_files_that_hold_no_samples(tmp_path: Path, data: bytes, reason: str, words: str) -> None:
    (reject,) = read(tmp_path, data)
    assert isinstance(reject, Reject) and reject.reason == reason and words in reject.error


def test_a_shard_that_cannot_be_opened_or_fails_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = WebDataset(webdataset="x.tar")
    (gone,) = source.read(Shard(str(tmp_path / "gone.tar"), 1, "", "p"))
    assert isinstance(gone, Reject) and gone.reason == "unreadable_shard" and "gone.tar" in gone.error

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 2000:
                raise RuntimeError("connection lost")
            return super().read(1024)

    tar = pack([(f"{n}.jpg", IMAGE) for n in range(5)])
    monkeypatch.setattr("datas3_ray.sources.tar_files.open_file", lambda uri, options: Failing(tar))
    items = list(source.read(Shard("memory://x.tar", 1, "", "p")))
    assert reasons(items) == ["0", "unreadable_shard"]
    assert isinstance(items[-1], Reject) and "connection lost" in items[-1].error and items[-1].key == "1"


@pytest.mark.skipif(not shared_shards(), reason="the shared image data are not here")
def test_real_shards_agree_with_tarfile() -> None:
    paths = shared_shards()[::6]
    source = parse_source({"webdataset": [str(path) for path in paths]})
    for shard in source.shards():
        samples = [item for item in source.read(shard) if isinstance(item, Sample)]
        with tarfile.open(shard.uri) as tar:
            members = {m.name: m for m in tar}
            assert len(samples) * 3 == len(members)
            for sample in samples:
                suffix = ".png" if sample.key + ".png" in members else ".jpg"
                member = members[sample.key + suffix]
                assert (sample.offset, sample.length) == (member.offset_data, member.size)
                assert sample.members["json"] == json.load(tar.extractfile(members[sample.key + ".json"]))  # type: ignore[arg-type]
        with open(shard.uri, "rb") as file:
            file.seek(samples[-1].offset)
            assert file.read(samples[-1].length) == samples[-1].image


# ------------------------------------------------------------------------------------------------------------- gzip


def read_gzip(folder: Path, data: bytes, name: str = "00000.tar.gz", **options: object) -> list[Sample | Reject]:
    path = folder / "pool" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    source = parse_source({"webdataset": str(path), **options})
    (shard,) = source.shards()
    assert shard.prefix == "pool/00000"
    return list(source.read(shard))


def noise(number: int) -> bytes:
    """Bytes that do not compress, the same for a number."""
    return random.Random(number).randbytes(700)


PACKED = [item for number in range(4) for item in ((f"{number}.jpg", noise(number)), (f"{number}.txt", b"text"))]


@pytest.mark.parametrize("name", ["00000.tar.gz", "00000.tgz", "00000.TGZ"])
def test_compressed_shards_are_read_as_what_they_hold(tmp_path: Path, name: str) -> None:
    tar = pack(PACKED)
    plain = read(tmp_path, tar)
    for data in (gzip.compress(tar), gzip.compress(tar[:3000]) + gzip.compress(tar[3000:]) + bytes(100)):
        packed = read_gzip(tmp_path, data, name)
        assert [replace(item, uri="") for item in packed] == [replace(item, uri="") for item in plain]
    assert all(tar[item.offset : item.offset + item.length] == item.image for item in plain)  # type: ignore[union-attr]


@given(cut=st.integers(0, 5_000), flip=st.integers(0, 5_000) | st.none(), step=st.sampled_from([1 << 10, 1 << 20]))
@settings(max_examples=150, deadline=None)
def test_gzip_gives_everything_before_damage(cut: int, flip: int | None, step: int) -> None:
    tar = pack(PACKED)
    packed = bytearray(gzip.compress(tar))
    if flip is not None:
        packed[10 + flip % (len(packed) - 10)] ^= 0x55
    else:
        del packed[cut % len(packed) :]
    file, out = GunzipFile(io.BytesIO(bytes(packed))), b""
    error = None
    try:
        while piece := file.read(step):
            out += piece
    except GzipError as raised:
        error = raised
    if flip is None:
        known = zlib.decompressobj(31).decompress(bytes(packed))
        assert out == known == tar[: len(out)] and (error is not None or not packed)
    else:
        assert error is not None or out == tar


def test_a_cut_compressed_shard_keeps_the_rows_before(tmp_path: Path) -> None:
    tar = pack(PACKED)
    packed = gzip.compress(tar)
    counts = set()
    for cut in range(20, len(packed) - 1, 97):
        *kept, reject = read_gzip(tmp_path, packed[:cut])
        known = len(zlib.decompressobj(31).decompress(packed[:cut]))
        assert isinstance(reject, Reject) and reject.reason == "truncated_shard"
        assert [item.key for item in kept] == [str(number) for number in range(len(kept))]
        complete = sum(2560 * (number + 1) + 512 < known for number in range(4))  # and the next sample has begun
        assert complete - 1 <= len(kept) <= complete + 1
        counts.add(len(kept))
    assert counts >= {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"", "empty_shard", "empty"),
        (gzip.compress(b""), "empty_shard", "empty"),
        (pack([("1.jpg", IMAGE)]), "not_a_tar", "not gzip"),
        (b"<html>", "not_a_tar", "not gzip"),
        (gzip.compress(b"<html>" * 200), "not_a_tar", "no tar header"),
        (b"\x1f\x8b", "truncated_shard", "ends too early"),
        (gzip.compress(pack([("1.jpg", IMAGE)])) + b"rubbish", "truncated_shard", "not gzip"),
    ],
)
def test_compressed_files_that_are_not_what_they_should_be(
    tmp_path: Path, data: bytes, reason: str, words: str
) -> None:
    *rows, reject = read_gzip(tmp_path, data)
    assert isinstance(reject, Reject) and reject.reason == reason and words in reject.error
    assert len(rows) == data.endswith(b"rubbish")


def test_a_bomb_is_not_kept_in_memory(tmp_path: Path) -> None:
    bomb = io.BytesIO()
    with tarfile.open(fileobj=bomb, mode="w") as tar:
        for name, size in (("1.jpg", 200_000_000), ("1.bin", 50_000_000), ("3.jpg", 4)):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))
    packed = gzip.compress(bomb.getvalue(), 1)
    del bomb
    tracemalloc.start()
    items = read_gzip(tmp_path, packed, max_bytes=1_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reasons(items) == ["too_large", "3"] and peak < 30_000_000


def test_member_names_that_lead_elsewhere_are_keys_and_nothing_more(tmp_path: Path) -> None:
    names = ["../../x.jpg", "/abs/y.jpg", "C:\\z.jpg", "a/../b.jpg"]
    items = read(tmp_path, pack([(name, IMAGE) for name in names]))
    keys = ["../../x", "/abs/y", "C:\\z", "a/../b"]
    assert [item.id for item in items] == [f"pool/00000/{key}" for key in keys]  # type: ignore[union-attr]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["00000.tar", "pool"]


@pytest.mark.parametrize("extension", ["gif", "bmp", "tif", "tiff", "jfif", "JPEG"])
def test_further_extensions_of_images(tmp_path: Path, extension: str) -> None:
    (sample,) = read(tmp_path, pack([(f"1.{extension}", IMAGE), ("1.txt", b"x")]))
    assert isinstance(sample, Sample) and sample.image == IMAGE


# ------------------------------------------------------------------------------------------------------------- spec


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"webdatset": "a.tar"}, "Did you mean 'webdataset'"),
        ({}, "unknown kind"),
        ("a.tar", "expected a mapping"),
        ({"webdataset": "a.tar", "colums": {}}, "unknown key 'colums'.*Did you mean 'columns'"),
        ({"webdataset": []}, "webdataset = \\[\\]"),
        ({"webdataset": ""}, "webdataset = ''"),
        ({"webdataset": 5}, "webdataset = 5"),
        ({"webdataset": "a.tar", "max_bytes": 0}, "max_bytes = 0"),
        ({"webdataset": "a.tar", "columns": {"id": "json.id"}}, "'id' is a column the lake fills"),
    ],
)
def test_wrong_specs_give_one_sentence(spec: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        parse_source(spec)
    assert "\n" not in str(error.value)


def test_sources_travel(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number:05d}.tar").write_bytes(pack([("1.jpg", IMAGE)]))
    source = parse_source({"webdataset": str(tmp_path / "*.tar"), "columns": {"site": "json.site"}})
    copy = pickle.loads(pickle.dumps(source))
    assert copy == source and copy.shards() == source.shards() and len(copy.shards()) == 3
    assert "site" in source.describe() and f"{tmp_path.name}/*.tar" in source.describe()


def test_images_of_compressed_shards_have_no_ranges_whatever_the_pattern(tmp_path: Path) -> None:
    (tmp_path / "1.tar").write_bytes(pack(PACKED))
    assert parse_source({"webdataset": str(tmp_path / "*")}).ranged
    (tmp_path / "2.tgz").write_bytes(gzip.compress(pack(PACKED)))
    source = parse_source({"webdataset": str(tmp_path / "*")})
    assert not source.ranged
    assert not parse_source({"webdataset": str(tmp_path / "{1.tar,2.tgz}")}).ranged
    assert parse_source({"webdataset": str(tmp_path / "*.tar")}).ranged
