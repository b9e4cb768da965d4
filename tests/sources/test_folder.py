"""Folders of images: labels, ids, metadata files, and a folder that grows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.sources import FileSource, Item, Reject, Sample, parse_source

IMAGE = b"\xff\xd8\xff image"


def put(root: Path, *names: str, data: bytes = IMAGE) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def folder(root: Path, **options: Any) -> FileSource:
    source = parse_source({"folder": str(root), "id_folders": 0, **options})
    assert isinstance(source, FileSource)
    return source


def rows(source: FileSource) -> dict[str, dict[str, Any] | str]:
    """The columns of every image and the reason of every reject, by key."""
    found: dict[str, dict[str, Any] | str] = {}
    for shard in source.shards():
        for item in source.read(shard):
            found[item.key] = item.reason if isinstance(item, Reject) else source.columns.extract(item)
    return found


def ids(source: FileSource) -> list[str]:
    return [item.id for item in source.items()]


@pytest.mark.parametrize(
    ("label", "expected"),
    [("folder", ["north", "north", None]), ("parent", ["cat", "north", None]), ("none", [None, None, None])],
)
def test_labels_come_from_folders(tmp_path: Path, label: str, expected: list[str | None]) -> None:
    put(tmp_path, "north/cat/1.jpg", "north/2.jpg", "3.jpg")
    found = rows(folder(tmp_path, label=label))
    labels = [found[key]["label"] for key in ("north/cat/1", "north/2", "3")]  # type: ignore[index]
    assert labels == expected


def test_ids_are_paths_after_the_last_folders(tmp_path: Path) -> None:
    put(tmp_path, "pets/cat/1.jpg")
    assert ids(folder(tmp_path / "pets")) == ["cat/1"]
    assert ids(folder(tmp_path / "pets", id_folders=1)) == ["pets/cat/1"]
    assert ids(folder(tmp_path / "pets/", id_folders=2, id_prefix="mine")) == [f"mine/{tmp_path.name}/pets/cat/1"]
    assert ids(folder(tmp_path / "pets", id_prefix="mine")) == ["mine/cat/1"]
    source = folder(tmp_path / "pets", id_folders=1)
    (sample,) = source.read(source.shards()[0])
    assert isinstance(sample, Sample) and (sample.key, sample.offset, sample.length) == ("cat/1", 0, len(IMAGE))


def test_files_that_differ_in_nothing_but_the_extension_keep_it(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "a/1.png", "a/2.jpg", "b/1.jpg", "a/1.png.gif")
    assert ids(folder(tmp_path)) == ["a/1.jpg", "a/1.png", "a/1.png.gif", "a/2", "b/1"]


def test_what_is_no_image_or_hidden_is_passed_over(tmp_path: Path) -> None:
    names = ["1.JPG", "2.jpeg", "3.jfif", "4.png", "5.webp", "6.gif", "7.bmp", "8.tif", "9.tiff"]
    put(tmp_path, *names, "readme.txt", ".1.jpg", ".git/1.jpg", "__MACOSX/1.jpg", "x.svg", "jpg", "y.jpg.txt")
    assert ids(folder(tmp_path)) == [str(number) for number in range(1, 10)]


def test_names_that_are_awkward(tmp_path: Path) -> None:
    names = ["ä ö/ü #1.jpg", "a'b/c\"d.jpg", "100%/x.y.z.jpg", "s*/[1].jpg", "emoji/🐈.jpg"]
    put(tmp_path, *names)
    found = rows(folder(tmp_path))
    assert sorted(found) == sorted(name.removesuffix(".jpg") for name in names)
    assert found["emoji/🐈"]["label"] == "emoji"  # type: ignore[index]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_metadata_are_the_records_of_the_images_beside_and_below(tmp_path: Path, kind: str) -> None:
    put(tmp_path, "train/cat/1.jpg", "train/cat/2.jpg", "train/dog/1.jpg", "test/1.jpg")
    table = [
        {"file_name": "cat/1.jpg", "label": "lynx", "age": 3, "caption": "a lynx"},
        {"file_name": "./dog/1.jpg", "label": None, "age": None, "caption": None},
        {"file_name": "dog/gone.jpg", "label": "wolf", "age": 5, "caption": "gone"},
    ]
    path = tmp_path / "train" / f"metadata.{kind}"
    if kind == "csv":
        path.write_text(
            '\ufefffile_name,label,age,caption\ncat/1.jpg,lynx,3,a lynx\n./dog/1.jpg,,,\ndog/gone.jpg,wolf,5,"g"\n'
        )
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in table))
    else:
        pq.write_table(pa.Table.from_pylist(table), path)
    found = rows(folder(tmp_path, columns={"age": {"from": "row.age", "type": "int"}}))
    assert found == {
        "train/cat/1": {"caption": "a lynx", "label": "lynx", "age": 3, "meta": None},
        "train/cat/2": {"caption": None, "label": "train", "age": None, "meta": None},
        "train/dog/1": {"caption": None, "label": "train", "age": None, "meta": None},
        "train/dog/gone": "unreadable_file",
        "test/1": {"caption": None, "label": "test", "age": None, "meta": None},
    }


def test_a_row_without_its_file_says_which(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,x\na.jpg,1\nb.jpg,2\na.txt,3\n")
    source = folder(tmp_path)
    rejects = [item for shard in source.shards() for item in source.read(shard) if isinstance(item, Reject)]
    assert [reject.key for reject in rejects] == ["a.txt", "b"]
    assert "row 4 of" in rejects[0].error and "metadata.csv' describes" in rejects[0].error
    assert rejects[1].uri == str(tmp_path / "b.jpg") and "is not there" in rejects[1].error


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,x\na.jpg,1\n", "row 2 of .* has no column 'file_name'; its columns are name, x"),
        ("file_name,x\na.jpg,1\n./a.jpg,2\n", "row 2 of .* and row 3 of .* both describe .*a.jpg"),
        ("file_name\n../../etc/passwd\n", "row 2 of .*leads out of"),
        ("file_name\n/etc/passwd\n", "row 2 of .*leads out of"),
        ("file_name,x\n,1\n", "row 2 of .*is no file name"),
        ("file_name,file_name\n", "two columns are named 'file_name'"),
        ("file_name,x\na.jpg,1,2,3\n", "line 2 of .* has 4 cells"),
        ("", "is empty; its first line has to name the columns"),
        ("file_name\n\xff\n", "is not UTF-8"),
    ],
)
def test_metadata_that_cannot_be_meant(tmp_path: Path, text: str, words: str) -> None:
    put(tmp_path, "a.jpg")
    (tmp_path / "metadata.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=f"^folder: .*{words}") as error:
        folder(tmp_path).items()
    assert "\n" not in str(error.value)


def test_damaged_metadata(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    for name, data, words in (
        ("metadata.parquet", b"PAR1 nothing", "metadata.parquet"),
        ("metadata.jsonl", b'{"file_name": "a.jpg"}\n{"file_name": ', "line 2 of .* is not JSON"),
        ("metadata.jsonl", b"[1]", "line 1 of .* is no object but list"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError, match=f"^folder: .*{words}"):
            folder(tmp_path).items()
        (tmp_path / name).unlink()


def by_id(source: FileSource) -> dict[str, Item]:
    return {item.id: item for item in source.items()}


def test_a_folder_that_grows_or_changes(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "a/2.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,x\na/1.jpg,1\na/3.jpg,3\n")
    source = folder(tmp_path)
    before = by_id(source)
    assert by_id(source) == before
    put(tmp_path, "a/2.jpg", data=IMAGE + b"!")
    put(tmp_path, "a/3.jpg", "a/4.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,x\na/1.jpg,2\na/3.jpg,3\n")
    after = by_id(source)
    assert list(after) == ["a/1", "a/2", "a/3", "a/4"]
    assert all(after[id].fingerprint != before[id].fingerprint for id in ("a/1", "a/2", "a/3"))
    os.utime(tmp_path / "a/4.jpg", (1, 1))
    assert by_id(source)["a/4"].fingerprint != after["a/4"].fingerprint


def test_groups(tmp_path: Path) -> None:
    put(tmp_path, *(f"{number}.jpg" for number in range(5)))
    source = folder(tmp_path, items_per_shard=2)
    assert [len(shard.items) for shard in source.shards()] == [2, 2, 1]
    assert [shard.size for shard in source.shards()] == [2 * len(IMAGE), 2 * len(IMAGE), len(IMAGE)]


def test_files_that_go_away_or_cannot_be_read(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    put(tmp_path, "4.jpg", data=b"")
    put(tmp_path, "5.jpg", data=b"x" * 101)
    source = folder(tmp_path, max_bytes=100)
    (shard,) = source.shards()
    (tmp_path / "2.jpg").unlink()
    outcome = [item.reason if isinstance(item, Reject) else item.key for item in source.read(shard)]
    assert outcome == ["1", "unreadable_file", "3", "empty_image", "too_large"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "holds no image"),
        ({"folder": "/no/such/folder"}, "'/no/such/folder' does not exist"),
        ({"label": "both"}, "label = 'both' is not allowed"),
        ({"items_per_shard": 0}, "items_per_shard = 0"),
        ({"folder": ""}, "folder = ''"),
    ],
)
def test_wrong_specs_give_one_sentence(tmp_path: Path, spec: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        folder(tmp_path, **spec).items()
    assert "\n" not in str(error.value)
