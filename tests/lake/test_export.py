"""Selections as files: every kind of column, nothing left behind, and the rows that were chosen or none."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.lake.export import export_selection
from datas3_ray.selectors import Everything, Random

IDS = [f"r{i}" for i in range(6)]
BOXES = [[{"label": "fish, red", "x": 0.5}], [], None, [{"label": 'a "b"', "x": 1.0}] * 2, [], []]


@pytest.fixture
def chosen(lake, make_pool):
    """Six rows with boxes, bytes, bytes in a struct, a list of numbers and a vector."""
    columns = {
        "boxes": pa.array(BOXES, pa.list_(pa.struct([("label", pa.string()), ("x", pa.float64())]))),
        "thumbnail": pa.array([b"\xff\xd8"] * 6, pa.binary()),
        "odd": pa.array([{"raw": b"\xff"}] * 6, pa.struct([("raw", pa.large_binary())])),
        "codes": pa.array([[1, 2]] * 6, pa.list_(pa.int64())),
        "meta": pa.array([{"a": 1}] * 6, pa.struct([("a", pa.int64())])),
        "n": pa.array(range(6)),
    }
    make_pool(lake, "pool", IDS, np.eye(6), fragments=2, **columns)
    Everything().select(lake, "pool", name="chosen")
    return lake


def test_csv_has_lists_and_structs_as_json(chosen, tmp_path: Path) -> None:
    assert export_selection(chosen, "chosen", tmp_path / "kept.csv") == 6
    with (tmp_path / "kept.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "boxes", "codes", "meta", "n"]
    assert [json.loads(row["boxes"]) if row["boxes"] else None for row in rows] == BOXES
    assert [(row["id"], json.loads(row["codes"]), json.loads(row["meta"])) for row in rows] == [
        (name, [1, 2], {"a": 1}) for name in IDS
    ]
    assert [path.name for path in tmp_path.glob("kept*")] == ["kept.csv"]


def test_json_lines_have_no_bytes_and_parquet_has(chosen, tmp_path: Path) -> None:
    export_selection(chosen, "chosen", tmp_path / "kept.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert [row["boxes"] for row in rows] == BOXES
    assert all(list(row) == ["id", "boxes", "codes", "meta", "n"] for row in rows)
    export_selection(chosen, "chosen", tmp_path / "kept.parquet")
    table = pq.read_table(tmp_path / "kept.parquet")
    assert table.schema.names == ["id", "boxes", "thumbnail", "odd", "codes", "meta", "n"]
    assert table.column("thumbnail").to_pylist() == [b"\xff\xd8"] * 6


def test_a_file_that_cannot_be_finished_is_taken_away(chosen, tmp_path: Path, monkeypatch) -> None:
    def full(self, rows) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(pyarrow.csv, "CSVWriter", type("Full", (pyarrow.csv.CSVWriter,), {"write_table": full}))
    with pytest.raises(OSError, match="no space"):
        export_selection(chosen, "chosen", tmp_path / "kept.csv")
    assert list(tmp_path.glob("kept*")) == []


@pytest.mark.parametrize("fragments", [1, 2])
def test_a_pool_that_was_made_anew_is_told(lake, make_pool, tmp_path: Path, fragments: int) -> None:
    make_pool(lake, "pool", IDS, np.eye(6), fragments=2)
    Random(size=3).select(lake, "pool", name="old")
    shutil.rmtree(lake.table("pool").uri)
    make_pool(lake, "pool", IDS, np.ones((6, 6)), fragments=fragments)
    sentence = "table 'pool' was deleted and made anew since selection 'old' was made from it; make the selection again"
    with pytest.raises(UsageError, match=sentence):
        export_selection(lake, "old", tmp_path / "old.csv")
    assert list(tmp_path.glob("old*")) == []


def test_a_pool_that_grew_is_exported_as_it_was(lake, make_pool, tmp_path: Path) -> None:
    make_pool(lake, "pool", IDS, np.eye(6), n=range(6))
    Everything().select(lake, "pool", name="old")
    make_pool(lake, "pool", ["r6"], np.ones((1, 6)), n=[6])
    assert export_selection(lake, "old", tmp_path / "old.txt") == 6
    assert (tmp_path / "old.txt").read_text().split() == IDS


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".txt"])
def test_a_pool_without_rows_is_a_file_without_rows(lake, tmp_path: Path, suffix: str) -> None:
    columns = [("id", pa.string()), ("n", pa.int64()), ("vec", pa.list_(pa.float32(), 6))]
    lake.add("pool", pa.schema(columns).empty_table())
    assert len(Everything().select(lake, "pool", name="none")) == 0
    path = tmp_path / f"none{suffix}"
    assert export_selection(lake, "none", path) == 0
    if suffix == ".parquet":
        assert pq.read_table(path).schema.names == ["id", "n"]
    else:
        assert path.read_text() == ('"id","n"\n' if suffix == ".csv" else "")


def test_an_id_with_a_line_break_is_no_line(lake, make_pool, tmp_path: Path) -> None:
    make_pool(lake, "pool", ["a\nb", "c"], np.eye(2))
    Everything().select(lake, "pool", name="all")
    with pytest.raises(UsageError, match=r"an id has a line break in it, and a \.txt file is one id a line"):
        export_selection(lake, "all", tmp_path / "kept.txt")
    assert export_selection(lake, "all", tmp_path / "kept.csv") == 2
    with (tmp_path / "kept.csv").open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["a\nb", "c"]
