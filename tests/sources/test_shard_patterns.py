"""Patterns to shards: braces, globs, lists and object stores, and a sentence where one names nothing."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import fsspec
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.sources import Sample, parse_source
from datas3_ray.sources.shard_patterns import expand_braces

IMAGE = b"\xff\xd8\xff image"


def tar(name: str = "1.jpg") -> bytes:
    """A shard of one image."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        info = tarfile.TarInfo(name)
        info.size = len(IMAGE)
        file.addfile(info, io.BytesIO(IMAGE))
    return buffer.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for folder in ("north", "south"):
        (tmp_path / folder).mkdir()
        for number in range(3):
            (tmp_path / folder / f"{number:05d}.tar").write_bytes(tar())
    return tmp_path


def names(root: Path, patterns: str | list[str], **options: object) -> list[str]:
    given = [patterns] if isinstance(patterns, str) else patterns
    source = parse_source({"webdataset": [str(root / pattern) for pattern in given], **options})
    return [shard.prefix for shard in source.shards()]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("north/00001.tar", ["north/00001"]),
        ("north/{00000..00001}.tar", ["north/00000", "north/00001"]),
        ("{south,north}/{00001..00002}.tar", ["north/00001", "north/00002", "south/00001", "south/00002"]),
        ("n*/0000[02].tar", ["north/00000", "north/00002"]),
        ("**/*2.tar", ["north/00002", "south/00002"]),
        ("{north/*0,south/00001}.tar", ["north/00000", "south/00001"]),
        ("nort?/0000{0,{1..2}}.tar", ["north/00000", "north/00001", "north/00002"]),
    ],
)
def test_patterns(shards: Path, pattern: str, expected: list[str]) -> None:
    assert names(shards, pattern) == expected


def test_lists_of_patterns_are_sorted_and_hold_each_shard_once(shards: Path) -> None:
    assert names(shards, ["south/00000.tar", "north/*.tar", "north/00001.tar"]) == [
        "north/00000",
        "north/00001",
        "north/00002",
        "south/00000",
    ]


def test_relative_home_and_file_paths_become_absolute(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards / "north")
    monkeypatch.setenv("HOME", str(shards))
    for pattern in ("00000.tar", "../north/00000.tar", "~/north/00000.tar", f"file://{shards}/north/00000.tar"):
        (shard,) = parse_source({"webdataset": pattern}).shards()
        assert shard.uri == str(shards / "north/00000.tar")
        assert shard.size == os.path.getsize(shard.uri) and shard.fingerprint.startswith(f"{shard.size}-")


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1]{x}.tar").write_bytes(tar())
    assert names(tmp_path, "a[1]{x}.tar") == [f"{tmp_path.name}/a[1]{{x}}"]


def test_a_link_that_leads_nowhere_is_told(shards: Path) -> None:
    os.symlink(shards / "gone.tar", shards / "00009.tar")
    with pytest.raises(UsageError, match="00009.tar' is a link to .*gone.tar', which is not there"):
        parse_source({"webdataset": str(shards / "*.tar")}).shards()


def test_the_fingerprint_follows_the_content(shards: Path) -> None:
    source = parse_source({"webdataset": str(shards / "north/*.tar")})
    before = source.shards()
    assert source.shards() == before
    (shards / "north/00001.tar").write_bytes(tar("2.jpg"))
    os.utime(shards / "north/00001.tar", (1, 1))
    changed = [a.fingerprint != b.fingerprint for a, b in zip(before, source.shards(), strict=True)]
    assert changed == [False, True, False]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("nowhere/x.tar", ["nowhere/x.tar", "nowhere' does not exist", "correct"]),
        ("north/{00001..00004}.tar", ["2 of 4", "00003.tar", "1 more", "holds 3 .tar files"]),
        ("north/*.tgz", ["matches no file", "exists and holds 3 .tar files"]),
        ("north", ["is a folder", "north/*.tar"]),
        ("north/{00009..00001}.tar", ["runs backwards", "{00001..00009}"]),
        ("north/{x}.tar", ["{x}", "neither a range"]),
    ],
)
def test_patterns_that_name_nothing(shards: Path, pattern: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        names(shards, pattern)
    for word in words:
        assert word in str(error.value)


def test_braces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert expand_braces("{8..11}") == ["8", "9", "10", "11"]
    assert expand_braces("{008..010}") == ["008", "009", "010"]
    assert expand_braces("plain") == ["plain"]
    monkeypatch.setattr("datas3_ray.sources.shard_patterns.MOST", 1000)
    with pytest.raises(UsageError, match="more than 1,000 paths"):
        expand_braces("{0..9999}{0..9}.tar")


@pytest.mark.parametrize("ending", [".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".TAR.ZST"])
def test_shards_compressed_with_other_than_gzip_are_refused(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a{ending}").write_bytes(b"")
    with pytest.raises(UsageError, match="uncompressed tar; unpack it first .*tar.gz"):
        names(tmp_path, f"a{ending}")


@pytest.mark.parametrize(
    ("pattern", "ranged"),
    [
        ("{0..2}.tar", True),
        ("*.tar.gz", False),
        ("x.TGZ", False),
        ("{0.tar,x.TGZ}", False),
        (["0.tar", "b.tar.gz"], False),
        ("*", False),
    ],
)
def test_only_uncompressed_shards_have_byte_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str | list[str], ranged: bool
) -> None:
    for name in ("0.tar", "1.tar", "2.tar", "b.tar.gz", "x.TGZ"):
        (tmp_path / name).write_bytes(tar())
    monkeypatch.chdir(tmp_path)
    assert parse_source({"webdataset": pattern}).ranged is ranged


def test_shards_with_the_same_ids_are_refused_and_how_to_part_them(tmp_path: Path) -> None:
    for year in ("2023", "2024"):
        (tmp_path / year / "train").mkdir(parents=True)
        (tmp_path / year / "train/0.tar").write_bytes(tar())
    with pytest.raises(UsageError, match=r"2023/train/0\.tar.*2024/train/0\.tar.*id_folders: 2.*id_prefix:"):
        names(tmp_path, "*/train/0.tar")
    assert names(tmp_path, "*/train/0.tar", id_folders=2) == ["2023/train/0", "2024/train/0"]
    assert names(tmp_path, "2023/train/0.tar", id_prefix="old") == ["old/train/0"]
    assert names(tmp_path, "2023/train/0.tar", id_prefix="old/", id_folders=0) == ["old/0"]


def test_object_stores(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    base = f"memory://{tmp_path.name}/pool"
    try:
        for number in range(20):
            memory.pipe(f"{base}/{number:03d}.tar", tar(f"{number}.jpg"))
        source = parse_source({"webdataset": [base + "/{000..019}.tar", base + "/*.tar"]})
        shards = source.shards()
        assert [shard.prefix for shard in shards] == [f"pool/{number:03d}" for number in range(20)]
        (sample,) = source.read(shards[7])
        assert isinstance(sample, Sample) and sample.id == "pool/007/7" and sample.uri.startswith("memory://")
        with fsspec.open(sample.uri) as file:
            file.seek(sample.offset)
            assert file.read(sample.length) == IMAGE
        for pattern, words in (
            ("/{000..029}.tar", "10 of 30"),
            ("/*.zip", "matches no file"),
            ("/nothing.tar", "no such file"),
            ("", "is a folder"),
        ):
            with pytest.raises(UsageError, match=words):
                parse_source({"webdataset": base + pattern}).shards()
    finally:
        memory.rm(f"/{tmp_path.name}", recursive=True)


def test_a_missing_protocol_says_what_to_install() -> None:
    with pytest.raises(UsageError, match="cannot be opened"):
        parse_source({"webdataset": "nosuchprotocol://bucket/a.tar"}).shards()
