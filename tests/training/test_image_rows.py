"""Rows that can be read as images: byte ranges, whole files and stored bytes, in the table's order."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from training.pictures import picture, png, rows

from datas3_ray import Lake
from datas3_ray.errors import UsageError
from datas3_ray.sources.base import SampleError
from datas3_ray.training.image_rows import read_image_rows


@pytest.fixture
def stored(tmp_path: Path) -> Lake:
    """A table of 70 pictures that holds their bytes, in two fragments."""
    lake = Lake(tmp_path / "lake")
    table = rows(70, "p", 0)
    lake.add("pool", table.slice(0, 40))
    lake.add("pool", table.slice(40))
    return lake


def test_stored_bytes_come_back_in_order(stored: Lake) -> None:
    table = stored.table("pool")
    images, columns = read_image_rows(table, None, ("label", "number"))
    truth = table.to_arrow()
    assert images.ids.to_pylist() == truth.column("id").to_pylist()
    assert columns.column_names == ["label", "number"] and columns.equals(truth.select(["label", "number"]))
    assert list(images.encoded()) == truth.column("image").to_pylist()
    assert "image" not in images.places.column_names  # only where they are


def test_take_and_other_processes(stored: Lake) -> None:
    images, _ = read_image_rows(stored.table("pool"), None, ())
    truth = stored.table("pool").to_arrow().column("image").to_pylist()
    some = np.array([69, 3, 3, 41])
    taken = pickle.loads(pickle.dumps(images.take(some)))
    assert len(taken) == 4 and taken.ids.to_pylist() == [f"p{i:04d}" for i in some]
    assert list(taken.encoded()) == [truth[i] for i in some]
    assert list(images.take(np.array([], dtype=np.int64)).encoded()) == []


def test_the_version_is_pinned(stored: Lake) -> None:
    images, _ = read_image_rows(stored.table("pool"), None, ())
    before = list(images.encoded())
    stored.add("pool", rows(5, "q", 9))
    stored.table("pool").dataset.delete("id = 'p0000'")
    assert list(images.encoded()) == before


def test_only_the_rows_asked_for(stored: Lake) -> None:
    keep = pa.array(["p0050", "p0002"])
    images, columns = read_image_rows(stored.table("pool"), keep, ("label",))
    assert images.ids.to_pylist() == ["p0002", "p0050"]
    assert columns.column("label").to_pylist() == ["cow", "cow"]
    truth = stored.table("pool").to_arrow().column("image").to_pylist()
    assert list(images.encoded()) == [truth[2], truth[50]]
    none, _ = read_image_rows(stored.table("pool"), pa.array([], pa.string()), ("label",))
    assert len(none) == 0 and list(none.encoded()) == []


def test_files_and_ranges(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [png(picture(code, rng)) for code in range(3)]
    (tmp_path / "one.bin").write_bytes(b"head" + images[0] + images[1])
    (tmp_path / "whole.png").write_bytes(images[2])
    lake = Lake(tmp_path / "lake")
    shard = str(tmp_path / "one.bin")
    table = pa.table(
        {
            "id": ["a", "b", "c", "d"],
            "uri": [shard, shard, str(tmp_path / "whole.png"), str(tmp_path / "gone.png")],
            "offset": pa.array([4, 4 + len(images[0]), None, None], pa.int64()),
            "length": pa.array([len(images[0]), len(images[1]), None, None], pa.int64()),
        }
    )
    lake.add("pool", table)
    found = list(read_image_rows(lake.table("pool"), None, ())[0].encoded())
    assert found[:3] == images
    assert isinstance(found[3], SampleError)


def test_what_does_not_fit_is_one_sentence(stored: Lake) -> None:
    table = stored.table("pool")
    with pytest.raises(UsageError, match="table 'pool' has no column 'labl'.*Did you mean 'label'?"):
        read_image_rows(table, None, ("labl",))
    with pytest.raises(UsageError, match="1 of 2 selected rows are not in version 2 of table 'pool'"):
        read_image_rows(table, pa.array(["p0001", "x"]), ())
    stored.add("vectors", pa.table({"id": ["a"], "label": ["ant"]}))
    with pytest.raises(UsageError, match="table 'vectors' has no images: neither 'uri'.*nor 'image'"):
        read_image_rows(stored.table("vectors"), None, ("label",))
