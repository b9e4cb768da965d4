"""A table that grows: new shards and files, changed ones, two runs at once, and an object store that stumbles."""

from __future__ import annotations

import gzip
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from test_ingest import TINY, content, jpeg, make_shards, write_shard

from datas3_ray import Lake
from datas3_ray.errors import Datas3Error, UsageError
from datas3_ray.ingest import ingest, parse_config
from datas3_ray.lake import ledger as ledger_module
from datas3_ray.lake.lease import Lease
from datas3_ray.lake.ledger import Ledger, ledger_name, quarantine_name


def config(source: dict, **more):
    return parse_config({"source": source, "encoders": TINY, "workers": 1, **more})


def test_changed_shards_are_replaced_when_asked_in_one_transaction(lake, tmp_path, monkeypatch) -> None:
    pattern = make_shards(tmp_path / "data", shards=3, rows=3)
    write_shard(tmp_path / "data" / "00001.tar", [("a", jpeg(1), {}), ("bad", b"<html>", {})])
    source = {"webdataset": pattern}
    ingest(lake, "pool", config(source), progress=False)
    before = lake.table("pool").to_arrow().sort_by("id")
    write_shard(tmp_path / "data" / "00001.tar", [("a", jpeg(7), {}), ("new", jpeg(8), {})])

    # The driver dies when the ledger has the new content and the table has not.
    def dying(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger_module, "commit", dying)
    with pytest.raises(KeyboardInterrupt):
        ingest(lake, "pool", config(source, replace=True), progress=False)
    monkeypatch.undo()
    assert content(lake).equals(before)

    summary = ingest(lake, "pool", config(source, replace=True), progress=False)
    assert (summary.recovered, summary.shards, summary.skipped) == (1, 0, 3)
    after = lake.table("pool").to_arrow().sort_by("id")
    changed = [name for name in after["id"].to_pylist() if "/00001/" in name]
    assert [name.rpartition("/")[2] for name in changed] == ["a", "new"]
    of_others = pc.invert(pc.match_substring(before["id"], "/00001/"))
    assert after.filter(pc.invert(pc.match_substring(after["id"], "/00001/"))).equals(before.filter(of_others))
    assert lake.table(quarantine_name("pool")).count_rows() == 0
    assert Ledger(lake, "pool").rows().num_rows == 3
    assert ingest(lake, "pool", config(source), progress=False).changed == []


def test_of_a_folder_only_new_files_are_read_and_changed_ones_replaced(lake, tmp_path) -> None:
    root = tmp_path / "images"
    for number in range(5):
        (root / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (root / "ab"[number % 2] / f"{number}.jpg").write_bytes(jpeg(number))
    source = {"folder": str(root), "items_per_shard": 2}
    summary = ingest(lake, "pool", config(source), progress=False)
    assert (summary.rows, summary.shards) == (5, 3)
    assert set(lake.table("pool").to_arrow(["label"])["label"].to_pylist()) == {"a", "b"}

    (root / "a" / "0.jpg").write_bytes(jpeg(100, (60, 40)))
    (root / "a" / "00.jpg").write_bytes(jpeg(101))
    summary = ingest(lake, "pool", config(source, replace=True), progress=False)
    assert (summary.rows, summary.skipped, summary.replaced) == (2, 4, 1)
    rows = lake.table("pool").to_arrow()
    assert rows.num_rows == len(set(rows["id"].to_pylist())) == 6
    widths = dict(zip(rows["id"].to_pylist(), rows["width"].to_pylist(), strict=True))
    assert [width for name, width in widths.items() if name.endswith("/a/0")] == [60]
    assert ingest(lake, "pool", config(source), progress=False).skipped == 6


def test_a_second_run_is_refused_while_the_first_lives(lake, tmp_path) -> None:
    pattern = make_shards(tmp_path / "data", shards=1, rows=1)
    with Lease(lake, "pool", ledger_name("pool")):
        with pytest.raises(Datas3Error, match=rf"'pool' is being filled by process {os.getpid()} on"):
            ingest(lake, "pool", config({"webdataset": pattern}), progress=False)
    assert lake.names() == ["pool.ledger"]


def test_what_could_not_be_read_is_named_and_comes_with_the_next_run(lake, tmp_path) -> None:
    pattern = make_shards(tmp_path / "data", shards=2, rows=2)
    broken = tmp_path / "data" / "00001.tar"
    good = broken.read_bytes()
    broken.unlink()
    broken.symlink_to("/proc/self/mem")  # a file that is there and answers every read with an I/O error
    with pytest.raises(Datas3Error, match=r"1 shards could not be read .*00001.tar.* 2 rows and 0 rejects from 1 sh"):
        ingest(lake, "pool", config({"webdataset": pattern}), progress=False)
    assert lake.table("pool").count_rows() == 2
    broken.unlink()
    broken.write_bytes(good)
    assert ingest(lake, "pool", config({"webdataset": pattern}), progress=False).rows == 2
    assert lake.table(quarantine_name("pool")).count_rows() == 0


def test_from_s3_to_s3_through_a_store_that_fails_for_a_while(s3, tmp_path, ray_session) -> None:
    pattern = make_shards(tmp_path / "data", shards=2, rows=3)
    files = s3.filesystem()
    for path in sorted((tmp_path / "data").iterdir()):
        files.put(str(path), f"bucket/shards/{path.name}")
    source = {"webdataset": "s3://bucket/shards/{00000..00001}.tar", "storage_options": s3.file_options}
    lake = Lake("s3://bucket/lake", storage_options=s3.lake_options)
    # Many of the writes, and all that is asked meanwhile, are answered with 500.
    s3.failed, s3.failing = 0, 12
    s3.fails_on = lambda method, path: method in ("PUT", "POST")
    summary = ingest(lake, "pool", config(source), progress=False)
    assert (summary.rows, s3.failed) == (6, 12)
    local = Lake(tmp_path / "local")
    ingest(local, "pool", config({"webdataset": pattern}), progress=False)
    columns = ["id", "width", "tiny"]
    there, here = (each.table("pool").to_arrow(columns).sort_by("id") for each in (lake, local))
    assert [name.rpartition("/")[2] for name in there["id"].to_pylist()] == ["k000", "k001", "k002"] * 2
    assert there["tiny"].combine_chunks().equals(here["tiny"].combine_chunks())
    assert there["width"].equals(here["width"])
    row = lake.table("pool").to_arrow(["uri", "offset", "length"]).to_pylist()[0]
    data = files.cat_file(row["uri"], start=row["offset"], end=row["offset"] + row["length"])
    assert data[:3] == b"\xff\xd8\xff"
    assert ingest(lake, "pool", config(source), progress=False).skipped == 2


def test_secrets_are_in_no_message(s3, tmp_path, ray_session) -> None:
    wrong = {**s3.file_options, "secret": "do-not-print-me"}
    source = {"webdataset": "s3://nowhere/{0..1}.tar", "storage_options": wrong}
    made = config(source)
    lake = Lake("s3://nowhere/lake", storage_options={**s3.lake_options, "aws_secret_access_key": "do-not-print-me"})
    with pytest.raises(Datas3Error) as caught:
        ingest(lake, "pool", made, progress=False)
    with pytest.raises(Datas3Error) as odd:
        config({"webdataset": "s3://b/x.tar", "storage_options": {"secret": ["do-not-print-me"]}})
        ingest(lake, "pool", config({"webdataset": "x", "storage_options": "do-not-print-me"}), progress=False)
    for text in (str(caught.value), str(odd.value), repr(made), repr(lake)):
        assert "do-not-print-me" not in text


def test_same_vectors_beside_a_column_that_came_later(lake, tmp_path) -> None:
    """A shard that comes when the table has one column more leaves it empty there."""
    make_shards(tmp_path / "data", shards=2, rows=2)
    ingest(lake, "pool", config({"webdataset": str(tmp_path / "data" / "00000.tar")}), progress=False)
    lake.table("pool").dataset.add_columns(pa.field("dino", pa.list_(pa.float32(), 3)))
    ingest(lake, "pool", config({"webdataset": str(tmp_path / "data" / "*.tar")}), progress=False)
    rows = lake.table("pool").to_arrow().sort_by("id")
    assert rows["dino"].null_count == rows.num_rows == 4
    assert np.isfinite(rows["tiny"].combine_chunks().flatten().to_numpy()).all()


def test_shards_that_were_moved_are_not_taken_a_second_time(lake, tmp_path) -> None:
    make_shards(tmp_path / "x" / "shards", shards=2, rows=2)
    make_shards(tmp_path / "z" / "others", shards=2, rows=2)
    ingest(lake, "pool", config({"webdataset": str(tmp_path / "x" / "shards" / "*.tar")}), progress=False)
    (tmp_path / "x").rename(tmp_path / "y")
    moved = {"webdataset": str(tmp_path / "y" / "shards" / "*.tar")}
    sentence = r"y/shards/0000[01].tar' would have the ids of '.*x/shards/0000[01].tar', which is in table 'pool'"
    with pytest.raises(UsageError, match=sentence):
        ingest(lake, "pool", config(moved), progress=False)
    assert lake.table("pool").count_rows() == 4
    assert ingest(lake, "pool", config({**moved, "id_prefix": "again"}), progress=False).rows == 4
    others = {"webdataset": str(tmp_path / "z" / "others" / "*.tar")}
    assert ingest(lake, "pool", config(others), progress=False).rows == 4
    ids = lake.table("pool").to_arrow(["id"])["id"].to_pylist()
    assert len(ids) == len(set(ids)) == 12


def test_moved_tables_of_files_are_not_taken_a_second_time(lake, tmp_path) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    for folder in ("x", "y"):
        (tmp_path / folder / "set").mkdir(parents=True)
        pq.write_table(pa.table({"uri": ["0.jpg"]}), tmp_path / folder / "set" / "rows.parquet")
    source = {"parquet": str(tmp_path / "x" / "set" / "*.parquet"), "root": str(tmp_path)}
    assert ingest(lake, "pool", config(source), progress=False).rows == 1
    with pytest.raises(UsageError, match="such as 'set/rows/000000000'"):
        ingest(lake, "pool", config({**source, "parquet": str(tmp_path / "y/set/*.parquet")}), progress=False)


def test_a_table_that_is_deleted_while_it_is_filled_is_not_begun_anew(lake, tmp_path, monkeypatch) -> None:
    source = {"webdataset": make_shards(tmp_path / "data", shards=3, rows=2)}
    settings = parse_config({"source": source, "encoders": {}, "workers": 1, "commit_shards": 1})
    commit = Ledger.commit

    def then_deleted(*args, **more):
        done = commit(*args, **more)
        shutil.rmtree(tmp_path / "lake" / "pool.lance")
        return done

    monkeypatch.setattr(Ledger, "commit", then_deleted)
    with pytest.raises(UsageError, match=r"'pool' is gone, but its ledger 'pool.ledger' says that 1 shards"):
        ingest(lake, "pool", settings, progress=False)
    assert not lake.exists("pool")


def test_a_table_that_was_deleted_without_its_ledger_is_told(lake, tmp_path) -> None:
    source = {"webdataset": make_shards(tmp_path / "data", shards=1, rows=2)}
    ingest(lake, "pool", config(source), progress=False)
    shutil.rmtree(tmp_path / "lake" / "pool.lance")
    with pytest.raises(UsageError, match=r"'pool' is gone, but its ledger 'pool.ledger' says that 1 shards"):
        ingest(lake, "pool", config(source), progress=False)
    assert lake.names() == ["pool.ledger", "pool.quarantine"]
    for name in lake.names():
        shutil.rmtree(tmp_path / "lake" / f"{name}.lance")
    assert ingest(lake, "pool", config(source), progress=False).rows == 2


def test_names_that_are_not_utf8_cost_no_neighbour(lake, tmp_path) -> None:
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    (tmp_path / "pets" / "cat" / "1.jpg").write_bytes(jpeg(1))
    with open(os.fsencode(tmp_path / "pets" / "cat") + b"/\xff.jpg", "wb") as file:
        file.write(jpeg(2))
    lines = [{"path": "pets/cat/1.jpg", "key": "good"}, {"path": "pets/cat/1.jpg", "key": "\ud800"}]
    (tmp_path / "files.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name, source, kept, key, reason in (
        ("pool", {"folder": str(tmp_path / "pets")}, "pets/cat/1", "cat/\\udcff", "unreadable_file"),
        ("rows", {"manifest": str(tmp_path / "files.jsonl"), "id": "key"}, "good", "\\ud800", "bad_record"),
    ):
        assert ingest(lake, name, config(source), progress=False).rows == 1
        assert lake.table(name).to_arrow(["id"])["id"].to_pylist() == [kept]
        (reject,) = lake.table(quarantine_name(name)).to_arrow().to_pylist()
        assert (reject["key"], reject["reason"]) == (key, reason)
        assert "is not UTF-8" in reject["error"]
        assert ingest(lake, name, config(source), progress=False).skipped == 2
    (tmp_path / "tars").mkdir()
    make_shards(tmp_path / "tars", shards=1, rows=1)
    os.rename(tmp_path / "tars" / "00000.tar", os.fsencode(tmp_path / "tars") + b"/\xff.tar")
    with pytest.raises(UsageError, match="is not UTF-8"):
        ingest(lake, "tars", config({"webdataset": str(tmp_path / "tars" / "*.tar")}), progress=False)


def test_columns_mapped_otherwise_are_refused_and_tables_of_before_are_not(lake, tmp_path) -> None:
    rows = [("a", jpeg(1), {"one": "x", "two": "y"})]
    write_shard(tmp_path / "data" / "0.tar", rows)
    source = {"webdataset": str(tmp_path / "data" / "*.tar"), "columns": {"kind": "json.one"}}
    other = {**source, "columns": {"kind": "json.two"}}
    ingest(lake, "pool", config(source), progress=False)
    before = lake.table("pool").version
    write_shard(tmp_path / "data" / "1.tar", rows)
    with pytest.raises(UsageError, match="'pool' was ingested with columns that are mapped otherwise"):
        ingest(lake, "pool", config(other), progress=False)
    assert lake.table("pool").version == before
    same = {**source, "columns": {"kind": "row.one"}}
    assert ingest(lake, "pool", config(same), progress=False).skipped == 1
    write_shard(tmp_path / "more" / "0.tar", rows)
    elsewhere = {**other, "webdataset": str(tmp_path / "more" / "0.tar"), "id_prefix": "other"}
    assert ingest(lake, "pool", config(elsewhere), progress=False).rows == 1, "another data set has its own records"

    ledger = lake.table("pool.ledger")
    configs = set(ledger.to_arrow(["config"])["config"].to_pylist())
    (identity,) = {text.partition("/")[0] for text in configs}
    assert len(configs) == 2
    ledger.dataset.update({"config": f"'{identity}'"})  # what the ledger of an earlier version has
    write_shard(tmp_path / "data" / "2.tar", rows)
    assert ingest(lake, "pool", config(other), progress=False).rows == 1
    with pytest.raises(UsageError, match="mapped otherwise"):
        ingest(lake, "pool", config(source), progress=False)
    with pytest.raises(UsageError, match="with other encoders or columns"):
        ingest(lake, "pool", config({**source, "columns": {}}), progress=False)


def test_a_table_keeps_its_way_of_storing_when_compressed_shards_come(lake, tmp_path) -> None:
    pattern = make_shards(tmp_path / "data", shards=2, rows=1)
    source = {"webdataset": pattern.replace("*.tar", "*")}
    later = tmp_path / "data" / "00001.tar"
    data = later.read_bytes()
    later.unlink()
    ingest(lake, "pool", config(source), progress=False)
    later.with_suffix(".tgz").write_bytes(gzip.compress(data))
    assert ingest(lake, "pool", config(source), progress=False).rows == 1
    assert "image" not in lake.table("pool").schema.names
    ingest(lake, "new", config(source), progress=False)
    assert lake.table("new").to_arrow(["image"])["image"].null_count == 0
