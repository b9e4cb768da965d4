"""Changed content in the place of what was ingested: all of it, and nothing of its neighbours'."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_ingest import jpeg, make_shards

from datas3_ray.errors import Datas3Error
from datas3_ray.ingest import ingest, parse_config
from datas3_ray.lake.ledger import Ledger, ShardEntry, quarantine_name


def config(source: dict, **more):
    return parse_config({"source": source, "encoders": {}, "workers": 1, **more})


def test_content_that_returns_is_taken_again(lake, tmp_path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    table = tmp_path / "files.csv"
    for label in "abababa":
        table.write_text("path,label\n" + "".join(f"{number}.jpg,{label}\n" for number in range(3)))
        summary = ingest(lake, "pool", config({"manifest": str(table)}, replace=True), progress=False)
        assert (summary.rows, summary.shards) == (3, 1)
        assert lake.table("pool").to_arrow(["label"])["label"].to_pylist() == [label] * 3
    assert ingest(lake, "pool", config({"manifest": str(table)}, replace=True), progress=False).skipped == 3


def test_a_shard_that_nobody_entered_is_told(lake, tmp_path) -> None:
    pattern = make_shards(tmp_path / "data", shards=1, rows=2)
    ingest(lake, "pool", config({"webdataset": pattern}), progress=False)
    ledger = Ledger(lake, "pool")
    row = ledger.rows().to_pylist()[0]
    schema = lake.table("pool").schema
    same = ShardEntry(row["shard"], row["fingerprint"], row["size"], 0, 0, 0, [], [], 0.1)
    assert ledger.commit([same], schema, row["config"]) == [], "another run was faster"
    with pytest.raises(Datas3Error, match=r"1 shards were read and could not be entered .*00000.tar"):
        ledger.commit([same], schema, row["config"], known={row["commit"]})
    other = ShardEntry(row["shard"], "other", row["size"], 0, 0, 0, [], [], 0.1)
    with pytest.raises(Datas3Error, match="could not be entered"):
        ledger.commit([other], schema, row["config"])


def rejected(lake) -> list[str]:
    rows = lake.table(quarantine_name("pool")).to_arrow().to_pylist()
    return sorted(row["id"] or row["key"] for row in rows)


def packed(folder: Path, labels: str) -> dict:
    """A file of four images, two of them broken, and the table of their ranges."""
    images = [jpeg(0), b"garbage!", jpeg(2), b"<html> x"]
    if not (folder / "pack.bin").exists():
        (folder / "pack.bin").write_bytes(b"".join(images))
    lines, at = ["path,offset,length,label"], 0
    for image, label in zip(images, labels, strict=True):
        lines.append(f"pack.bin,{at},{len(image)},{label}")
        at += len(image)
    (folder / "files.csv").write_text("\n".join(lines))
    return {"manifest": str(folder / "files.csv")}


def test_of_several_images_in_one_file_only_the_changed_ones_leave_quarantine(lake, tmp_path) -> None:
    ingest(lake, "pool", config(packed(tmp_path, "abcd")), progress=False)
    before = rejected(lake)
    assert len(before) == 2
    summary = ingest(lake, "pool", config(packed(tmp_path, "zbcy"), replace=True), progress=False)
    assert (summary.rows, summary.rejects) == (1, 1)
    assert rejected(lake) == before


def test_a_row_without_a_path_does_not_take_the_line_of_another(lake, tmp_path) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    for label in "ab":
        (tmp_path / "files.csv").write_text(f"path,label\n0.jpg,a\n,{label}\n,c\n")
        ingest(lake, "pool", config({"manifest": str(tmp_path / "files.csv")}, replace=True), progress=False)
        assert rejected(lake) == ["files/row-3", "files/row-4"]


def test_a_row_whose_path_is_corrected_leaves_quarantine(lake, tmp_path) -> None:
    source = {"manifest": str(tmp_path / "files.csv"), "id": "key"}
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    (tmp_path / "files.csv").write_text("path,key\ntypo.jpg,a\n")
    ingest(lake, "pool", config(source), progress=False)
    assert rejected(lake) == ["a"]
    (tmp_path / "files.csv").write_text("path,key\n1.jpg,a\n")
    assert ingest(lake, "pool", config(source, replace=True), progress=False).rows == 1
    assert rejected(lake) == []


def test_lines_of_a_table_that_was_not_downloaded_go_one_by_one(lake, tmp_path) -> None:
    root = tmp_path / "laion"
    (root / "00000").mkdir(parents=True)
    keys = [f"{number:09}" for number in range(3)]

    def download(count: int) -> None:
        for number in range(count):
            (root / "00000" / f"{keys[number]}.jpg").write_bytes(jpeg(number))
            (root / "00000" / f"{keys[number]}.json").write_text("{}")
        status = ["success"] * count + ["failed_to_download"] * (3 - count)
        pq.write_table(pa.table({"key": keys, "status": status}), root / "00000.parquet")

    source = {"img2dataset": str(root), "format": "files"}
    download(1)
    ingest(lake, "pool", config(source), progress=False)
    assert rejected(lake) == [f"laion/00000/{key}" for key in keys[1:]]
    download(2)
    ingest(lake, "pool", config(source, replace=True), progress=False)
    assert rejected(lake) == [f"laion/00000/{keys[2]}"]
    assert lake.table("pool").count_rows() == 2


def test_a_quarantine_of_an_earlier_version_gets_the_column_and_loses_the_right_lines(lake, tmp_path) -> None:
    ingest(lake, "pool", config(packed(tmp_path, "abcd")), progress=False)
    rows = lake.table(quarantine_name("pool")).to_arrow()
    shutil.rmtree(tmp_path / "lake" / f"{quarantine_name('pool')}.lance")
    lake.write(quarantine_name("pool"), rows.drop_columns(["id"]), kind="quarantine")
    (tmp_path / "bad.jpg").write_bytes(b"<html>")
    source = packed(tmp_path, "abcy")
    with open(tmp_path / "files.csv", "a") as file:
        file.write("\nbad.jpg,,,x\n")
    summary = ingest(lake, "pool", config(source, replace=True), progress=False)
    assert (summary.rows, summary.rejects) == (0, 2)
    lines = lake.table(quarantine_name("pool")).to_arrow(["key", "id"]).to_pylist()
    assert sorted((line["key"].split("/")[0], line["id"] is None) for line in lines) == [
        ("bad", False),
        ("pack", False),
        ("pack", True),
    ]


@pytest.mark.parametrize("column", ["uri", "image"])
def test_rows_that_name_files_are_replaced_with_their_table(lake, tmp_path, column) -> None:
    """Their uri is that of the image; what others put below the same ids stays."""
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    (tmp_path / "below" / "set").mkdir(parents=True)
    (tmp_path / "below" / "set" / "mine.jpg").write_bytes(jpeg(9))

    def write(name: str, labels: str) -> None:
        names = [f"{number}.jpg" for number in range(len(labels))]
        places = names if column == "uri" else [{"bytes": None, "path": name} for name in names]
        pq.write_table(pa.table({column: places, "label": list(labels)}), tmp_path / name)

    write("rows.parquet", "abc")
    write("rows%.parquet", "o")
    source = {"parquet": str(tmp_path / "*.parquet"), "id_folders": 0, "id_prefix": "set"}
    if column == "image":
        source["image"] = column
    more = {"store": "uri"}
    ingest(lake, "pool", config(source, **more), progress=False)
    folder = {"folder": str(tmp_path / "below"), "id_folders": 0, "id_prefix": "set/rows", "columns": {}}
    ingest(lake, "pool", config(folder, **more), progress=False)
    write("rows.parquet", "xy")
    ingest(lake, "pool", config(source, replace=True, **more), progress=False)
    rows = lake.table("pool").to_arrow(["id", "label"]).to_pylist()
    assert sorted((row["id"], row["label"]) for row in rows) == [
        ("set/rows%/000000000", "o"),
        ("set/rows/000000000", "x"),
        ("set/rows/000000001", "y"),
        ("set/rows/set/mine", "set"),
    ]
