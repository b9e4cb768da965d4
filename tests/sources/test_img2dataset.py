"""The three forms that img2dataset writes: the same rows whichever it is, and what was not downloaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import formats as builders

from datas3_ray.errors import UsageError
from datas3_ray.sources import FileSource, Reject, Sample, Source, parse_source

FORMS = ["webdataset", "files", "parquet"]
MAPPING = {"w": {"from": "row.original_width", "type": "int"}, "status": "json.status", "url": None}


def everything(source: Source) -> list[Sample | Reject]:
    return [item for shard in source.shards() for item in source.read(shard)]


def outcome(source: Source) -> dict[str, Any]:
    """The columns and the image of every row, and the reason and text of every reject, by key."""
    found: dict[str, Any] = {}
    for item in everything(source):
        if isinstance(item, Reject):
            found[item.key] = (item.reason, item.error)
        else:
            found[item.key] = (item.id, item.image, source.columns.extract(item), item.members["json"])
    return found


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return request.param


def test_all_forms_give_the_same_rows_and_rejects(tmp_path: Path) -> None:
    found = []
    for form in FORMS:
        (tmp_path / form).mkdir()
        folder = builders.write_img2dataset(tmp_path / form, form)
        found.append(outcome(parse_source({"img2dataset": str(folder), "columns": MAPPING})))
    assert found[0] == found[1] == found[2] and len(found[0]) == 10
    id, image, row, record = found[0]["000010002"]
    assert (id, image) == ("laion/00001/000010002", builders.png(2))
    assert record == builders.img2dataset_row(1, 2)
    assert {name: row[name] for name in ("caption", "label", "w", "status")} == {
        "caption": "caption 1 2",
        "label": None,
        "w": 800,
        "status": "success",
    }
    meta = json.loads(row["meta"])
    assert meta["sha256"] == f"{2:064x}" and "url" not in meta and "status" not in meta
    text = "status 'failed_to_download': HTTP Error 404: Not Found (https://example.org/1/3.png)"
    assert found[0]["000010003"] == ("not_downloaded", text)


def test_the_form_is_detected_or_given(tmp_path: Path, form: str) -> None:
    folder = str(builders.write_img2dataset(tmp_path, form))
    source = parse_source({"img2dataset": folder})
    given = parse_source({"img2dataset": folder, "format": form})
    assert type(source) is type(given) and f"({form})" in source.describe()
    assert source.ranged == (form != "parquet") and isinstance(source, FileSource) == (form == "files")
    assert outcome(source) == outcome(given)


def test_in_a_store(tmp_path: Path, form: str) -> None:
    folder = builders.write_img2dataset(tmp_path, form)
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), f"/{tmp_path.name}/laion", recursive=True)
    try:
        remote = parse_source({"img2dataset": f"memory://{tmp_path.name}/laion"})
        assert outcome(remote) == outcome(parse_source({"img2dataset": str(folder)}))
    finally:
        memory.rm(f"/{tmp_path.name}", recursive=True)


def test_ids_and_groups(tmp_path: Path, form: str) -> None:
    folder = str(builders.write_img2dataset(tmp_path, form))
    source = parse_source({"img2dataset": folder, "id_folders": 0, "id_prefix": "x", "items_per_shard": 3})
    ids = [item.id for item in everything(source) if isinstance(item, Sample)]
    assert ids == sorted(ids) and ids[0] == "x/00000/000000000" and len(ids) == 8


def test_what_is_known_of_failures_without_the_tables(tmp_path: Path) -> None:
    folder = builders.write_img2dataset(tmp_path, "webdataset")
    (folder / "00000.parquet").unlink()
    reasons = [
        item.reason for item in everything(parse_source({"img2dataset": str(folder)})) if isinstance(item, Reject)
    ]
    assert reasons == ["not_downloaded"]
    (folder / "00001.parquet").write_bytes(b"PAR1 nothing")
    source = parse_source({"img2dataset": str(folder)})
    items = everything(source)
    assert [item.reason for item in items if isinstance(item, Reject)] == ["not_a_table"]
    assert sum(isinstance(item, Sample) for item in items) == 8


def test_a_damaged_table_beside_files(tmp_path: Path) -> None:
    folder = builders.write_img2dataset(tmp_path, "files")
    (folder / "00001.parquet").write_bytes(b"PAR1 nothing")
    items = everything(parse_source({"img2dataset": str(folder)}))
    assert sum(isinstance(item, Sample) for item in items) == 8
    assert sorted(item.reason for item in items if isinstance(item, Reject)) == ["bad_record", "not_downloaded"]


def test_a_shard_of_which_nothing_was_downloaded(tmp_path: Path) -> None:
    rows = [{**builders.img2dataset_row(0, 3), "key": f"{n:09d}"} for n in range(2)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "00000.parquet")
    builders.write_tar(tmp_path / "00000.tar", [])
    items = everything(parse_source({"img2dataset": str(tmp_path)}))
    assert [item.reason for item in items] == ["not_downloaded", "not_downloaded"]  # type: ignore[union-attr]
    (tmp_path / "00000.parquet").unlink()
    (item,) = everything(parse_source({"img2dataset": str(tmp_path)}))
    assert isinstance(item, Reject) and item.reason == "empty_shard"


def test_a_tar_that_is_cut_off_still_tells_what_was_not_downloaded(tmp_path: Path) -> None:
    folder = builders.write_img2dataset(tmp_path, "webdataset")
    data = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").write_bytes(data[: 9 * 512])
    (folder / "00000.tar").unlink()
    items = everything(parse_source({"img2dataset": str(folder)}))
    assert [getattr(item, "reason", "row") for item in items] == ["row", "truncated_shard", "not_downloaded"]


def test_rows_of_tables_that_are_not_as_they_should_be(tmp_path: Path) -> None:
    good = builders.img2dataset_row(0, 0)
    image = builders.png(0)
    rows = [
        {**good, "jpg": image},
        {**good, "jpg": image},
        {**good, "key": "000000001", "jpg": None},
        {**good, "key": "000000002", "jpg": b""},
        {**good, "key": "000000003", "jpg": image * 9},
        {**good, "key": "000000004", "status": None, "jpg": image},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "00000.parquet")
    source = parse_source({"img2dataset": str(tmp_path), "max_bytes": 5 * len(image)})
    items = everything(source)
    assert [getattr(item, "reason", "row") for item in items] == [
        "row",
        "duplicate_key",
        "no_image",
        "empty_image",
        "too_large",
        "not_downloaded",
    ]
    assert [item.offset for item in items] == list(range(6))


def test_tables_that_are_none(tmp_path: Path) -> None:
    folder = builders.write_img2dataset(tmp_path, "parquet")
    (folder / "00001.parquet").write_bytes((folder / "00001.parquet").read_bytes()[:500])
    pq.write_table(pa.table({"jpg": [b"x"]}), folder / "00002.parquet")
    pq.write_table(pq.read_table(folder / "00000.parquet").slice(0, 0), folder / "00003.parquet")
    items = everything(parse_source({"img2dataset": str(folder)}))
    reasons = [item.reason for item in items if isinstance(item, Reject)]
    assert reasons == ["not_downloaded", "not_a_table", "not_a_table", "empty_shard"]


def test_files_without_notes_or_with_bad_ones(tmp_path: Path) -> None:
    folder = builders.write_img2dataset(tmp_path, "files")
    shutil.rmtree(folder / "00001")
    (folder / "00001.parquet").unlink()
    (folder / "00000" / "000000000.json").unlink()
    (folder / "00000" / "000000001.json").write_text("{")
    (folder / "00000" / "000000002.txt").write_bytes(b"\xff")
    (folder / "00000" / "000000004.txt").unlink()
    source = parse_source({"img2dataset": str(folder)})
    found = {item.key: item for item in everything(source)}
    first, last = found["000000000"], found["000000004"]
    assert isinstance(first, Sample) and first.members == {"txt": "caption 0 0"}
    assert isinstance(last, Sample) and source.columns.extract(last)["caption"] == "caption 0 4"
    assert [found[f"00000000{n}"].reason for n in (1, 2, 3)] == [  # type: ignore[union-attr]
        "bad_json",
        "bad_text",
        "not_downloaded",
    ]


def test_fingerprints_follow_what_lies_beside(tmp_path: Path) -> None:
    folder = builders.write_img2dataset(tmp_path, "webdataset")
    before = [shard.fingerprint for shard in parse_source({"img2dataset": str(folder)}).shards()]
    (folder / "00001.parquet").write_bytes(b"longer or shorter")
    after = [shard.fingerprint for shard in parse_source({"img2dataset": str(folder)}).shards()]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "holds no .tar and no .parquet file"),
        ({"format": "webdataset"}, "holds no .tar file"),
        ({"format": "parquet"}, "holds no .parquet file"),
        ({"format": "files"}, "holds no image"),
        ({"format": "tfrecord"}, "format = 'tfrecord' is not allowed"),
        ({"img2dataset": "/no/such/folder"}, "'/no/such/folder' does not exist"),
        ({"form": "files"}, "unknown key 'form'.*Did you mean 'format'"),
    ],
)
def test_wrong_specs_give_one_sentence(tmp_path: Path, spec: dict[str, Any], words: str) -> None:
    (tmp_path / "README").write_text("x")
    with pytest.raises(UsageError, match=words) as error:
        parse_source({"img2dataset": str(tmp_path), **spec}).shards()
    assert "\n" not in str(error.value)


def test_a_folder_whose_tables_cannot_be_read_asks_for_the_form(tmp_path: Path) -> None:
    (tmp_path / "00000.parquet").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="00000.parquet'.*name the form with `format:`"):
        parse_source({"img2dataset": str(tmp_path)})
