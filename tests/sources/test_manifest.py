"""Manifests: what a row's file is, what its id and its record are, and rows that name none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.sources import FileSource, Reject, Sample, parse_source
from datas3_ray.sources.manifest import _Rows

IMAGE = b"\xff\xd8\xff image"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("data/1.jpg", "data/2.jpg", "data/2.png", "3.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(IMAGE + name.encode())
    return tmp_path


def manifest(folder: Path, text: str, name: str = "rows.csv", **options: Any) -> FileSource:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    source = parse_source({"manifest": str(path), **options})
    assert isinstance(source, FileSource)
    return source


def read(source: FileSource) -> dict[str, Sample | Reject]:
    return {item.key: item for shard in source.shards() for item in source.read(shard)}


def outcome(source: FileSource) -> dict[str, Any]:
    """The record of every image and the reason of every reject, by key."""
    return {
        key: item.reason if isinstance(item, Reject) else item.members["json"] for key, item in read(source).items()
    }


def test_ranges_in_rows_after_one_that_is_a_whole_file(images: Path) -> None:
    rows = [{"path": "3.jpg"}, {"path": "data/1.jpg", "offset": 2, "length": 5}]
    found = read(manifest(images, "\n".join(map(json.dumps, rows)), "rows.jsonl"))
    assert {key: len(item.image) for key, item in found.items() if isinstance(item, Sample)} == {
        "3": len(IMAGE) + 5,
        "data/1/2": 5,
    }


def test_a_column_that_the_table_does_not_have(images: Path) -> None:
    columns = {"site": "row.stie"}
    with pytest.raises(UsageError, match="columns: site: .* has no column 'stie'; it has site.*mean 'site'"):
        manifest(images, "path,site\n3.jpg,A\n", columns=columns).items()
    manifest(images, "path,stie\ndata/1.jpg,A\n", "more.csv")
    source = parse_source({"manifest": str(images / "*.csv"), "columns": columns})
    assert len(source.shards()[0].items) == 2  # one of the tables has it
    assert len(manifest(images, '{"path": "3.jpg"}', "rows.jsonl", columns=columns).items()) == 1


ROWS = [{"path": "data/1.jpg", "site": "A", "age": 3}, {"path": "3.jpg", "site": None, "age": None}]


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl", "rows.ndjson", "rows.parquet", "rows.csv.gz"])
def test_every_kind_of_manifest(images: Path, name: str) -> None:
    gap = "\t" if "tsv" in name else ","
    text = gap.join(("path", "site", "age")) + "\n" + gap.join(("data/1.jpg", "A", "3")) + f"\r\n3.jpg{gap}{gap}\n\n"
    if "json" in name:
        text = "\n".join(json.dumps(row) for row in ROWS)
    source = manifest(images, text, name, columns={"age": {"from": "row.age", "type": "int"}})
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), images / name)
    found = read(source)
    assert {key: source.columns.extract(item) for key, item in found.items()} == {  # type: ignore[arg-type]
        "data/1": {"caption": None, "label": None, "age": 3, "meta": '{"site":"A"}'},
        "3": {"caption": None, "label": None, "age": None, "meta": '{"site":null}'},
    }
    assert found["3"].uri == str(images / "3.jpg") and found["3"].image == IMAGE + b"3.jpg"  # type: ignore[union-attr]


@pytest.mark.parametrize("column", ["uri", "url", "path", "file_name", "image", "File_Name", "URL"])
def test_the_usual_columns_are_found(images: Path, column: str) -> None:
    assert outcome(manifest(images, f"x,{column}\n1,3.jpg\n")) == {"3": {"x": "1"}}


def test_the_first_usual_column_wins_unless_one_is_named(images: Path) -> None:
    text = "image,url,path\n3.jpg,data/1.jpg,data/2.png\n"
    assert list(outcome(manifest(images, text))) == ["data/1"]
    assert outcome(manifest(images, text, uri="image")) == {"3": {"url": "data/1.jpg", "path": "data/2.png"}}


def test_paths_are_relative_to_the_manifest_or_the_root(images: Path) -> None:
    (images / "lists").mkdir()
    above = manifest(images, "path\n../data/1.jpg\n", "lists/rows.csv")
    assert [item.uri for item in above.items()] == [str(images / "data/1.jpg")]
    assert list(outcome(above)) == [str(images / "data/1").lstrip("/")]
    below = manifest(images, "path\n1.jpg\n", "lists/rows.csv", root=str(images / "data"))
    assert list(outcome(below)) == ["1"]
    whole = manifest(images, f"path\n{images}/data/1.jpg\nfile://{images}/3.jpg\n")
    assert list(outcome(whole)) == ["3", "data/1"]


def test_uris_of_stores(images: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe(f"/{images.name}/a.jpg", IMAGE)
    try:
        text = f"path,x\nmemory://{images.name}/a.jpg,1\n3.jpg,2\nmemory://{images.name}/gone.jpg,3\n"
        source = manifest(images, text)
        assert outcome(source) == {
            "3": {"x": "2"},
            f"{images.name}/a": {"x": "1"},
            f"{images.name}/gone": "unreadable_file",
        }
        assert [item.size for item in source.items()] == [len(IMAGE + b"3.jpg"), 0, 0]
        memory.pipe(f"/{images.name}/rows.csv", b"path,x\na.jpg,1\n")
        remote = parse_source({"manifest": f"memory://{images.name}/rows.csv"})
        assert isinstance(remote, FileSource) and outcome(remote) == {"a": {"x": "1"}}
    finally:
        memory.rm(f"/{images.name}", recursive=True)


def test_ids_of_web_addresses_have_no_query() -> None:
    source = parse_source({"manifest": "x.csv"})
    assert isinstance(source, FileSource)
    rows = _Rows(source, "/x.csv", "/")  # type: ignore[arg-type]
    entry = rows._entry(2, {"url": "https://example.org/a/1.jpg?width=5&key=secret"})
    assert entry.path == "example.org/a/1.jpg" and entry.uri.endswith("?width=5&key=secret")


def test_ids_keep_the_extension_only_where_they_have_to(images: Path) -> None:
    assert list(outcome(manifest(images, "path\ndata/1.jpg\ndata/2.jpg\ndata/2.png\n"))) == [
        "data/1",
        "data/2.jpg",
        "data/2.png",
    ]


def test_an_id_column_and_a_prefix(images: Path) -> None:
    source = manifest(images, "path,sha\n3.jpg,77\ndata/1.jpg,\n", id="sha", id_prefix="mine")
    assert [item.id for item in source.items()] == ["mine/77", "mine/rows/row-3"]
    assert outcome(source) == {"77": {}, "rows/row-3": "bad_record"}
    numbers = manifest(images, '{"path": "3.jpg", "n": 7.0}\n{"path": "data/1.jpg", "n": 8}', "rows.jsonl", id="n")
    assert [item.id for item in numbers.items()] == ["7", "8"]


def test_ranges_of_packed_files(images: Path) -> None:
    (images / "pack.bin").write_bytes(b"0123456789")
    text = "path,offset,length,x\npack.bin,0,4,a\npack.bin,4,6,b\npack.bin,8,6,c\n3.jpg,,,d\n"
    text += "pack.bin,-1,4,e\npack.bin,5,,f\n"
    found = read(manifest(images, text))
    images_by_key = {key: item.image for key, item in found.items() if isinstance(item, Sample)}
    assert images_by_key == {"pack/0": b"0123", "pack/4": b"456789", "3": IMAGE + b"3.jpg"}
    rejects = {key: item.reason for key, item in found.items() if isinstance(item, Reject)}
    assert rejects == {"pack/8": "unreadable_file", "rows/row-6": "bad_record", "rows/row-7": "bad_record"}
    sample = found["pack/4"]
    assert isinstance(sample, Sample) and (sample.offset, sample.length) == (4, 6)
    assert sample.members["json"] == {"x": "b"}
    named = manifest(images, "path,at,n\npack.bin,1,2\n", offset="at", length="n")
    assert [item.image for item in read(named).values()] == [b"12"]  # type: ignore[union-attr]


def test_rows_that_name_no_file_are_rejects_and_not_lost(images: Path) -> None:
    text = '{"path": "3.jpg"}\n{"path": null, "x": 1}\n{"x": 2}\nno json\n[1]\n{"path": 5}\n\n{"path": "gone.jpg"}'
    found = read(manifest(images, text, "rows.jsonl"))
    assert {key: getattr(item, "reason", "") for key, item in found.items()} == {
        "3": "",
        "gone": "unreadable_file",
        **{f"rows/row-{number}": "bad_record" for number in (2, 3, 4, 5, 6)},
    }
    errors = {key: item.error for key, item in found.items() if isinstance(item, Reject)}
    assert "row 2 of" in errors["rows/row-2"] and "'path' is empty" in errors["rows/row-2"]
    assert "is not JSON" in errors["rows/row-4"] and "5, which is no path" in errors["rows/row-6"]


def test_a_row_of_a_csv_may_have_several_lines_or_too_many_cells(images: Path) -> None:
    text = 'path,caption\n3.jpg,"two\nlines, ""quoted"""\ndata/1.jpg,x,y\ndata/2.png\n'
    found = read(manifest(images, text))
    assert found["3"].members["json"] == {"caption": 'two\nlines, "quoted"'}  # type: ignore[union-attr]
    assert found["data/2"].members["json"] == {}  # type: ignore[union-attr]
    assert isinstance(found["rows/row-4"], Reject) and "3 cells, the first line 2" in found["rows/row-4"].error


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("path\n3.jpg\ndata/1.jpg\n3.jpg\n", {}, "row 2 of .* and row 4 of .* have the same id '3'; .*`id:`"),
        ("path,k\n3.jpg,a\ndata/1.jpg,a\n", {"id": "k"}, "row 2 of .* and row 3 of .* the same id 'a'"),
        ("name\n3.jpg\n", {}, "none of the columns uri, url, path, file_name, image, but name; .*`uri:`"),
        ("path,x\n3.jpg,1\n", {"id": "y"}, "id: .* has no column 'y'; it has path, x"),
        ("path,site\n3.jpg,1\n", {"uri": "pth"}, "uri: .* no column 'pth'.*Did you mean 'path'"),
        ("path,o\n3.jpg,1\n", {"offset": "o"}, "give both"),
        ("path\n", {}, "has no rows"),
        ("", {}, "is empty"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(images: Path, text: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        manifest(images, text, **options).items()
    assert "\n" not in str(error.value)


def test_files_that_are_no_manifests(images: Path) -> None:
    for name, words in (("rows.txt", "none of the formats"), ("rows.parquet", "cannot be read"), ("x.csv.gz", "gzip")):
        (images / name).write_bytes(b"nothing\x00\xff")
        with pytest.raises(UsageError, match=f"^manifest: .*{words}"):
            parse_source({"manifest": str(images / name)}).shards()
    with pytest.raises(UsageError, match="^manifest: .*no such file"):
        parse_source({"manifest": str(images / "gone.csv")}).shards()


def test_several_manifests(images: Path) -> None:
    manifest(images, "path,x\n3.jpg,1\n", "a.csv")
    manifest(images, '{"url": "data/1.jpg"}', "b.jsonl")
    source = parse_source({"manifest": [str(images / "a.csv"), str(images / "*.jsonl")]})
    assert isinstance(source, FileSource) and outcome(source) == {"3": {"x": "1"}, "data/1": {}}
    manifest(images, "path\n./3.jpg\n", "c.csv")
    with pytest.raises(UsageError, match="row 2 of '.*a.csv' and row 2 of '.*c.csv' have the same id '3'"):
        parse_source({"manifest": str(images / "[ac].csv")}).shards()


def test_fingerprints_follow_the_file_and_the_row(images: Path) -> None:
    def marks(text: str) -> list[str]:
        return [item.fingerprint for item in manifest(images, text).items()]

    before = marks("path,x\n3.jpg,1\ndata/1.jpg,1\ngone.jpg,1\n")
    assert marks("path,x\n3.jpg,1\ndata/1.jpg,1\ngone.jpg,1\n") == before
    (images / "3.jpg").write_bytes(b"other")
    after = marks("path,x\n3.jpg,1\ndata/1.jpg,1\ngone.jpg,2\n")
    assert [a != b for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_values_that_json_has_not_are_null(images: Path) -> None:
    source = manifest(images, '{"path": "3.jpg", "x": NaN, "y": 1.5}', "rows.jsonl")
    assert outcome(source) == {"3": {"x": None, "y": 1.5}}
    table = pa.table({"path": ["3.jpg"], "x": [float("nan")], "thumb": [b"\xff"], "when": [pa.scalar(0, pa.date32())]})
    pq.write_table(table, images / "t.parquet")
    other = parse_source({"manifest": str(images / "t.parquet")})
    assert isinstance(other, FileSource) and outcome(other) == {"3": {"x": None, "when": "1970-01-01"}}


@pytest.mark.parametrize("text", ['path,n\n0.jpg,a\n1.jpg,"5 inch\n2.jpg,b\n', 'path,n\n0.jpg,a\n1.jpg,"5" inch\n'])
def test_a_quote_that_is_not_closed_takes_no_rows(images: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"rows.csv': the row that begins at line 3 is no CSV: .*twice"):
        manifest(images, text).items()
